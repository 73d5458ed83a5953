"""Regret of recorded runs after every number of evaluations, of all agents of a folder.

Accuracies are looked up in the tables and never taken from a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amed_env.bench.result_file import SUFFIX, Header, ResultFile, Run, read_result, require_different_agents
from amed_env.bench.run_statistics import interquartile_mean
from amed_env.bench.suites import Cell, is_tabular, task_digest
from amed_env.bench.truth import NOTHING, CellTruth, FloatArray, IntArray, cell_truth
from amed_env.errors import AmedError, BenchFileError, InputError

CHECKPOINTS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Evaluations after which tables show the regret."""
CONTROL_PREFIX = "control/"
REFERENCE = "random"
"""The agent that every panel shows for comparison."""
_POINTS_PER_DECADE = 24
"""Intervals of a curve of 500 evaluations are computed about 60 times: closer than the eye can tell on three panels."""
_SHARED = ("suite", "cells", "evaluations")
"""What files must have in common to be compared."""


@dataclass(frozen=True, eq=False)
class Steps:
    """All improvements of R runs on T cells, in the order of their evaluations: N in all.

    Attributes:
        after: Number of the evaluation: int64 (N,), rising.
        seeds: Number of the seed: int64 (N,).
        cells: Number of the cell: int64 (N,).
        regrets: Accuracy points on the search split from then on: float64 (N,).
    """

    after: IntArray
    seeds: IntArray
    cells: IntArray
    regrets: FloatArray

    def of_cells(self, chosen: Sequence[int]) -> Steps:
        """The improvements on some of the cells, which are numbered anew in the given order."""
        kept = np.flatnonzero(np.isin(self.cells, chosen))
        order = np.argsort(chosen)
        cells = order[np.searchsorted(chosen, self.cells[kept], sorter=order)]
        return Steps(self.after[kept], self.seeds[kept], cells, self.regrets[kept])


@dataclass(frozen=True, eq=False)
class AgentRuns:
    """The runs of one agent: R seeds on T cells.

    Attributes:
        header: What its file says about it.
        rows: Row of the best allocation at the end: int64 (R, T), `NOTHING` where nothing was found.
        steps: Its improvements.
        first: Regret before anything was found, in accuracy points on the search split: float64 (T,).
        final: Regret at the end, in accuracy points on the search split: float64 (R, T).
        test_regrets: Accuracy points on the test split of what was best on the search split at the end: (R, T).
        evaluations: Distinct evaluations that were used: int64 (R, T).
        seconds: Duration of the runs: float64 (R, T).
        notes: Runs that ended before their time.
    """

    header: Header
    rows: IntArray
    steps: Steps
    first: FloatArray
    final: FloatArray
    test_regrets: FloatArray
    evaluations: IntArray
    seconds: FloatArray
    notes: int

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.header.agent

    @property
    def group(self) -> str:
        """`learner`, `search` or `control`."""
        return "control" if self.name.startswith(CONTROL_PREFIX) else self.header.family

    def regrets_after(self, points: npt.ArrayLike) -> Iterator[FloatArray]:
        """Regrets on the search split after numbers of evaluations, in accuracy points: each float64 (R, T).

        Args:
            points: (K,), rising.
        """
        regrets = np.tile(self.first, (len(self.final), 1))
        begin = 0
        for end in np.searchsorted(self.steps.after, np.asarray(points), side="right"):
            since = slice(begin, end)
            # A run may improve twice since the point before: of equal indices the last one counts.
            regrets[self.steps.seeds[since], self.steps.cells[since]] = self.steps.regrets[since]
            begin = end
            yield regrets.copy()

    def of_cells(self, chosen: Sequence[int]) -> AgentRuns:
        """The runs on some of the cells, by their numbers."""
        names = ("rows", "first", "final", "test_regrets", "evaluations", "seconds")
        of_chosen = {name: getattr(self, name)[..., list(chosen)] for name in names}
        return replace(self, steps=self.steps.of_cells(chosen), **of_chosen)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Agents on the same cells.

    Attributes:
        suite: Name of the suite.
        which: `held-out` or `development`.
        evaluations: Distinct evaluations that each run had.
        points: Numbers of evaluations at which intervals are computed: int64 (K,), rising.
        truths: What is true about each of the T cells.
        agents: The agents, the least regret first.
        left_out: Agents and cells that are not compared, each with the reason.
    """

    suite: str
    which: str
    evaluations: int
    points: IntArray
    truths: tuple[CellTruth, ...]
    agents: tuple[AgentRuns, ...]
    left_out: Mapping[str, str]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of the cells."""
        return list(dict.fromkeys(truth.cell.task for truth in self.truths))

    @property
    def seeds(self) -> str:
        """How many seeds the agents had: `10`, or `1 to 10`."""
        counts = sorted({agent.header.seeds for agent in self.agents})
        return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"

    def checkpoints(self) -> list[int]:
        """Numbers among the points that tables show."""
        return [int(point) for point in self.points if point in CHECKPOINTS or point == self.evaluations]

    def group(self, name: str) -> list[AgentRuns]:
        """The agents of a group."""
        return [agent for agent in self.agents if agent.group == name]

    def panel(self, group: str) -> list[AgentRuns]:
        """The agents of a group and `random`, beside which they are shown; none if the group has no others."""
        agents = [agent for agent in self.group(group) if agent.name != REFERENCE]
        reference = self.find(REFERENCE)
        if reference is None:
            return agents
        alone = reference.group == group and len(self.agents) == 1
        return [*agents, reference] if agents or alone else []

    def find(self, name: str) -> AgentRuns | None:
        """The agent of a name, or None."""
        return next((agent for agent in self.agents if agent.name == name), None)

    def scopes(self) -> dict[str, Comparison]:
        """The comparison, by the name `""`, and that of each task by its name if there are several."""
        of_tasks = {task: self.of_task(task) for task in self.tasks} if len(self.tasks) > 1 else {}
        return {"": self, **of_tasks}

    def of_task(self, task: str) -> Comparison:
        """The same comparison on the cells of one task; agents keep their order."""
        chosen = [number for number, truth in enumerate(self.truths) if truth.cell.task == task]
        agents = tuple(agent.of_cells(chosen) for agent in self.agents)
        return replace(self, truths=tuple(self.truths[number] for number in chosen), agents=agents)


def points_up_to(evaluations: int) -> IntArray:
    """Numbers of evaluations at which intervals are computed: about as far apart in logarithms, and the checkpoints.

    Args:
        evaluations: The last one.

    Returns:
        int64 (K,), rising from 1 to `evaluations`.
    """
    count = 2 + int(_POINTS_PER_DECADE * np.log10(evaluations))
    between = np.rint(np.geomspace(1, evaluations, count)).astype(np.int64)
    return np.unique([*between, *(point for point in CHECKPOINTS if point < evaluations), evaluations])


def read_folder(folder: Path) -> list[ResultFile]:
    """All result files of a folder, by name.

    Raises:
        InputError: If there is none.
        BenchFileError: If one is damaged, or two of them have the same agent, or they are of different benchmarks.
    """
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if not paths:
        raise InputError(f"{folder} has no result files (*{SUFFIX}); make some with `amed bench tiny --out {folder}`.")
    files = [read_result(path) for path in paths]
    first = files[0]
    require_different_agents(files)
    for file in files:
        for field in _SHARED:
            own, expected = getattr(file.header, field), getattr(first.header, field)
            if own != expected:
                raise BenchFileError(
                    f"{file.path} has {field} {own!r}, {first.path} has {expected!r}; only runs of the same cells "
                    "with the same number of evaluations can be compared, so keep them in different folders."
                )
    return files


def compare(files: Sequence[ResultFile]) -> Comparison:
    """Regret of all agents on the cells that the files have.

    An agent that lacks runs is left out, and so are cells whose task has no table.

    Args:
        files: Files of the same benchmark; see `read_folder`.

    Raises:
        BenchFileError: If a file claims what cannot be, or no agent has finished.
    """
    left_out: dict[str, str] = {}
    cells = []
    for cell in dict.fromkeys(run.cell for file in files for run in file.runs):
        if is_tabular(cell.task):
            cells.append(cell)
        else:
            left_out[str(cell)] = "no table, so its regret is not known"
    if not cells:
        raise BenchFileError("the result files have no runs on tasks with a table, so no regret is known.")
    truths = tuple(cell_truth(cell) for cell in cells)
    points = points_up_to(files[0].header.evaluations)
    agents = []
    for file in files:
        expected = len(cells) * file.header.seeds
        missing = expected - sum(run.cell in cells for run in file.runs)
        if missing:
            left_out[file.header.agent] = f"{missing} of {expected} runs are missing"
            continue
        _check_tables(file, truths)
        agents.append(agent_runs(file, truths))
    if not agents:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise BenchFileError(f"no agent has finished: {reasons}. Continue the benchmark with --resume.")
    agents.sort(key=lambda agent: (float(interquartile_mean(agent.final)), float(agent.final.mean()), agent.name))
    header = files[0].header
    return Comparison(header.suite, header.cells, header.evaluations, points, truths, tuple(agents), left_out)


def _check_tables(file: ResultFile, truths: Iterable[CellTruth]) -> None:
    for truth in {truth.cell.task: truth for truth in truths}.values():
        name = truth.cell.task
        if file.header.tables.get(name) != task_digest(truth.task):
            raise BenchFileError(
                f"{file.path} was made with another table of {name!r} than this version has; run the benchmark again."
            )


def agent_runs(file: ResultFile, truths: Sequence[CellTruth]) -> AgentRuns:
    """The runs of a file on some cells, with their regrets from the tables.

    Raises:
        BenchFileError: If a run is missing, or the file claims what cannot be.
    """
    by_key: dict[tuple[Cell, int], Run] = {run.key: run for run in file.runs}
    seeds = range(file.header.seeds)
    shape = (len(seeds), len(truths))
    rows = np.full(shape, NOTHING, dtype=np.int64)
    final, test_regrets, seconds = np.empty(shape), np.empty(shape), np.empty(shape)
    evaluations = np.empty(shape, dtype=np.int64)
    steps, notes = [], 0
    for column, truth in enumerate(truths):
        runs = [_run_of(file, by_key, truth.cell, seed) for seed in seeds]
        after, of_seeds, improved = _improvements(file, truth, runs)
        rows[of_seeds, column] = improved  # the last one of each run remains
        final[:, column] = truth.regret(rows[:, column])
        test_regrets[:, column] = truth.regret(rows[:, column], "test")
        steps.append(Steps(after, of_seeds, np.full_like(after, column), truth.regret(improved)))
        evaluations[:, column] = [run.evaluations for run in runs]
        seconds[:, column] = [run.seconds for run in runs]
        notes += sum(run.note is not None for run in runs)
    first = np.array([float(truth.regret(NOTHING)) for truth in truths])
    return AgentRuns(file.header, rows, _ordered(steps), first, final, test_regrets, evaluations, seconds, notes)


def _ordered(steps: Sequence[Steps]) -> Steps:
    """The improvements of all cells in the order of their evaluations."""
    names = ("after", "seeds", "cells", "regrets")
    together = Steps(*(np.concatenate([getattr(of_cell, name) for of_cell in steps]) for name in names))
    order = np.argsort(together.after, kind="stable")
    return Steps(*(getattr(together, name)[order] for name in names))


def _run_of(file: ResultFile, by_key: Mapping[tuple[Cell, int], Run], cell: Cell, seed: int) -> Run:
    if (cell, seed) not in by_key:
        raise BenchFileError(f"{file.path} has no run of seed {seed} on {cell}, though it has all others.")
    return by_key[cell, seed]


def _improvements(file: ResultFile, truth: CellTruth, runs: Sequence[Run]) -> tuple[IntArray, IntArray, IntArray]:
    """Evaluations, numbers of seeds, and rows of all improvements on a cell, run by run: each int64 (N,)."""
    try:
        rows = truth.rows(better.choices for run in runs for better in run.improvements)
    except AmedError as error:
        raise BenchFileError(f"{file.path}: {error} See `amed bench validate {file.path}`.") from error
    for run in runs:
        order = [better.evaluation for better in run.improvements]
        if sorted(set(order)) != order:
            raise BenchFileError(
                f"{file.path}: the improvements of seed {run.seed} on {truth.cell} are not in the order of their "
                f"evaluations. See `amed bench validate {file.path}`."
            )
    after = np.array([better.evaluation for run in runs for better in run.improvements], dtype=np.int64)
    seeds = np.repeat(np.arange(len(runs)), [len(run.improvements) for run in runs])
    within = after <= file.header.evaluations
    return after[within], seeds[within], rows[within]
