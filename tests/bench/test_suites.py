"""Suites: what they promise to compare on can really be run."""

import itertools

import pytest

from amed_env import AmedError, Quality, Task
from amed_env.bench.suites import SUITES, Cells, cell_task, find_suite, missing_task, usable_tasks
from amed_env.errors import InputError, UnknownNameError
from amed_env.hardware import load_device
from amed_env.hardware.tied import TiedDevice
from amed_env.problem.constraints import least_choosable
from amed_env.problem.objective import BUDGET_METRICS
from amed_env.problem.ties import Ties
from amed_env.tasks.catalogue import TABULAR, TABULAR_PREFIX, TablePlan, named_workload

SHIPPED = ("tiny", "real")
SHAPES = {cell.task: cell for name in SHIPPED for cell in SUITES[name].cells()}


class Shapes:
    """An evaluator of a network of which only the shapes are known."""

    def __init__(self, workload):
        self.workload = workload
        self.fingerprint, self.kept_float, self.looked_up, self.ties = "shapes", (), False, None

    def evaluate(self, allocation, split="search"):
        return Quality(1, 2, 0.5)


@pytest.mark.parametrize("task", SHAPES)
def test_every_budget_can_be_met_on_its_device(task):
    """With the widths and the ties of the task, also where its table or its data are missing."""
    name = task.removeprefix(TABULAR_PREFIX)
    plan = TABULAR[name] if task.startswith(TABULAR_PREFIX) else TablePlan()
    ties = Ties.of(named_workload(name), plan.ties)
    shapes = Shapes(ties.reduced())
    for suite, which in itertools.product(SHIPPED, Cells):
        for cell in SUITES[suite].cells(which):
            if cell.task != task:
                continue
            device = TiedDevice(load_device(cell.device), ties)
            problem = Task(task, shapes, device, plan.bits).with_budget(dict(cell.budget))
            ((metric, factor),) = cell.budget
            costs = problem.costs[BUDGET_METRICS[metric]]
            least = least_choosable(costs[None], problem.choosable).sum()
            assert least <= factor * costs[:, -1].sum()
            assert problem.capabilities.additive and problem.capabilities.deterministic


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_that_is_held_out_may_be_tuned_on(name):
    held_out, development = (SUITES[name].cells(which) for which in (Cells.HELD_OUT, Cells.DEVELOPMENT))
    assert not {cell.device for cell in held_out} & {cell.device for cell in development}
    assert not {cell.budget for cell in held_out} & {cell.budget for cell in development}
    assert len(set(held_out)) == len(held_out) and len(set(development)) == len(development)


def test_the_standard_suite_has_three_tables_three_devices_and_four_budgets():
    cells = find_suite("tiny").cells()
    assert len(cells) == 36 and {len({cell.task for cell in cells}), len({cell.device for cell in cells})} == {3}
    assert {factor for cell in cells for _, factor in cell.budget} == {0.3, 0.45, 0.6, 0.8}


def test_cells_of_what_is_here_can_be_made():
    suite = find_suite("tiny")
    usable, missing = usable_tasks(suite)
    assert sorted([*usable, *missing]) == sorted(suite.tasks) and "tabular/digits-cnn" in usable
    for which in Cells:
        for cell in suite.cells(which, usable):
            assert cell_task(cell).budgets[0].value == cell.budget[0][1]


def test_cells_share_their_table_and_costs():
    one, two = (cell_task(cell) for cell in find_suite("tiny").cells(tasks=["digits-cnn"])[:2])
    assert one.evaluator is two.evaluator and one.limits != two.limits
    assert all(one.costs[metric] is two.costs[metric] for metric in one.costs)


def test_names_that_are_not_there():
    with pytest.raises(UnknownNameError, match="did you mean 'tiny'"):
        find_suite("tyny")
    with pytest.raises(UnknownNameError, match="did you mean 'tabular/digits-cnn'"):
        find_suite("tiny").cells(tasks=["tabular/digits-cn"])
    assert missing_task("no-such-task") == "this version has no such task"


def test_a_suite_of_which_nothing_is_here_is_refused(monkeypatch):
    monkeypatch.setattr("amed_env.bench.suites.missing_task", lambda task: "gone")
    with pytest.raises(InputError, match="tabular/kws-dscnn: gone"):
        usable_tasks(find_suite("tiny"))


def test_an_unreachable_budget_is_reported():
    from dataclasses import replace

    cell = replace(find_suite("tiny").cells()[0], budget=(("latency", 0.01),))
    with pytest.raises(AmedError, match=r"no allocation meets latency=0\.01 on 'bit-serial': the smallest reachable"):
        cell_task(cell)
