"""What is compared on: suites of cells, each a task on a device within a budget.

A suite has *held-out* cells, which the leaderboard uses, and *development* cells on other devices and budgets, which
are the only ones that an agent may be tuned on. Devices and budgets of all suites stand here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from amed_env.bench.limits import Cells
from amed_env.errors import AmedError, InputError, UnknownNameError
from amed_env.tasks.catalogue import TABULAR_PREFIX, TASKS
from amed_env.tasks.make import make_task
from amed_env.tasks.task import Task


@dataclass(frozen=True)
class BudgetedDevice:
    """A device, and which of its costs is limited.

    Attributes:
        device: A name from `amed devices`.
        budget: `latency`, `energy`, `memory` or `bops`.
    """

    device: str
    budget: str


@dataclass(frozen=True)
class Cell:
    """One problem of a suite.

    Attributes:
        task: A name from `amed tasks`.
        device: A name from `amed devices`.
        budget: Budget names to factors of the uniform 8-bit cost.
    """

    task: str
    device: str
    budget: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return f"{self.task} on {self.device} within {', '.join(f'{name}={value:g}' for name, value in self.budget)}"


@dataclass(frozen=True)
class CellGrid:
    """Every device with every budget."""

    devices: tuple[BudgetedDevice, ...]
    budgets: tuple[float, ...]


@dataclass(frozen=True)
class Suite:
    """Tasks, and the cells on which agents solve them.

    Attributes:
        name: As in `amed bench NAME`.
        description: One line.
        tasks: Names from `amed tasks`.
        grids: Devices and budgets of the held-out and of the development cells.
    """

    name: str
    description: str
    tasks: tuple[str, ...]
    grids: tuple[tuple[Cells, CellGrid], ...]

    def cells(self, which: Cells = Cells.HELD_OUT, tasks: Iterable[str] | None = None) -> list[Cell]:
        """The cells, task by task; only those of some tasks if these are given.

        Raises:
            UnknownNameError: If a task is not one of the suite.
        """
        chosen = self.tasks if tasks is None else self._known(tasks)
        grid = dict(self.grids)[which]
        return [
            Cell(task, device.device, ((device.budget, budget),))
            for task in chosen
            for device in grid.devices
            for budget in grid.budgets
        ]

    def _known(self, tasks: Iterable[str]) -> list[str]:
        wanted = [self._full(task) for task in tasks]
        return [task for task in self.tasks if task in wanted]

    def _full(self, task: str) -> str:
        for name in (task, TABULAR_PREFIX + task):
            if name in self.tasks:
                return name
        raise UnknownNameError(f"task of suite {self.name}", task, self.tasks)


_HELD_OUT = CellGrid(
    (
        BudgetedDevice("bit-serial", "latency"),
        BudgetedDevice("bitfusion", "energy"),
        BudgetedDevice("eyeriss-ws", "energy"),
    ),
    (0.3, 0.45, 0.6, 0.8),
)
"""A bit-serial array, and two arrays of fusable elements that differ in size and buffers.

Each limits a cost that every task of the suites can bring down to 0.3 there. Depthwise layers leave so much of a
systolic array idle that the latency of kws-dscnn on bitfusion never falls below 0.90, whatever the widths."""

_DEVELOPMENT = CellGrid(
    (
        BudgetedDevice("bops", "latency"),
        BudgetedDevice("edge-tpu-like", "memory"),
        BudgetedDevice("systolic-32", "energy"),
    ),
    (0.4, 0.55, 0.7),
)

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "tiny",
            "three tables of every allocation, three devices, four budgets: exact regret in seconds",
            ("tabular/digits-cnn", "tabular/cifar10-resnet8", "tabular/kws-dscnn"),
            ((Cells.HELD_OUT, _HELD_OUT), (Cells.DEVELOPMENT, _DEVELOPMENT)),
        ),
        Suite(
            "real",
            "ResNet-20 and ResNet-56 on CIFAR-10, evaluated on the images: no table, so no regret",
            ("cifar10-resnet20", "cifar10-resnet56"),
            ((Cells.HELD_OUT, _HELD_OUT), (Cells.DEVELOPMENT, _DEVELOPMENT)),
        ),
    )
}


def find_suite(name: str) -> Suite:
    """The suite of a name.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in SUITES:
        raise UnknownNameError("suite", name, SUITES)
    return SUITES[name]


def missing_task(name: str) -> str | None:
    """Why a task cannot be used here, or None if it can."""
    try:
        entry = TASKS.get(name)
    except AmedError:
        return "this version has no such task"
    if entry.table is None:
        return entry.missing()
    try:
        entry.table()
    except AmedError as error:
        return str(error)
    return None


def cell_task(cell: Cell) -> Task:
    """The task of a cell. Tables and costs are loaded once a process and shared by its cells.

    Raises:
        BudgetError: If no allocation meets the budget; the message has the smallest reachable value.
        AmedError: If task or device cannot be made.
    """
    return _task_on(cell.task, cell.device).with_budget(dict(cell.budget))


@lru_cache(maxsize=64)
def _task_on(task: str, device: str) -> Task:
    # Suites are about accuracy, whatever tasks are scored by elsewhere: their results stay comparable.
    made = make_task(task, device=device, score="metric")
    _ = made.predicted_loss  # so that the copies of all cells have it
    return made


def is_tabular(name: str) -> bool:
    """Whether every allocation of a task is in a table, so that regret is known."""
    return name.startswith(TABULAR_PREFIX)


def task_digest(task: Task) -> str:
    """SHA-256 (hex) of what decides about the quality of every allocation: the table, or network, data and recipe."""
    table = task.evaluator.complete_table()
    if table is not None:
        return table.digest
    return sha256(task.evaluator.fingerprint.encode()).hexdigest()


def usable_tasks(suite: Suite, tasks: Iterable[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """Which tasks of a suite can be used here, and why the others cannot.

    Raises:
        UnknownNameError: If a task is not one of the suite.
        InputError: If none can.
    """
    chosen = list(dict.fromkeys(cell.task for cell in suite.cells(tasks=tasks)))
    missing: dict[str, str] = {}
    for task in chosen:
        reason = missing_task(task)
        if reason is not None:
            missing[task] = reason
    usable = [task for task in chosen if task not in missing]
    if not usable:
        reasons = "; ".join(f"{task}: {reason}" for task, reason in missing.items())
        raise InputError(f"no task of suite {suite.name} can be used here: {reasons}.")
    return usable, missing
