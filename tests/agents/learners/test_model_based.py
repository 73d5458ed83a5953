"""The policy on a learned model: it finds what the proxy does not know, and nothing where there is nothing to learn."""

import numpy as np
import pytest
from small_task import FormulaEvaluator, SharedBuffer, all_choices, formula_task

from amed_env.agents import make_agent
from amed_env.errors import AgentError, NonFiniteError

QUICK = {"batch": 8, "first": 8, "environments": 32}


class Misled(FormulaEvaluator):
    """The proxy warns of the wrong layers: its order is the reverse of the truth."""

    def predicted_loss(self, precisions):
        return super().predicted_loss(precisions)[::-1].copy()


def misled_task(shuffle=None):
    task = formula_task(6, {"latency": 0.55})
    task.evaluator = Misled(6, [0.1, 0.1, 0.4, 0.9, 1.6, 2.5])
    if shuffle is not None:
        choices = all_choices(task)
        order = np.random.default_rng(shuffle).permutation(len(choices))
        place = {tuple(row): position for position, row in enumerate(choices)}
        truth = task.evaluator.evaluate

        def evaluate(allocation, split="search"):
            if max(p.weight_bits for p in allocation.values()) > 8:
                return truth(allocation, split)
            other = choices[order[place[tuple(task.choices(allocation))]]]
            return truth(task.allocation(other), split)

        task.evaluator.evaluate = evaluate
    return task


def best_rank(task, result):
    """Which share of all feasible allocations is truly better than the best that was found."""
    table, every = task.costs["latency_ms"], all_choices(task)
    within = every[table[np.arange(6), every].sum(axis=1) <= task.limits["latency_ms"] * (1 + 1e-9)]
    accuracy = np.array([task.evaluator.evaluate(task.allocation(row)).accuracy for row in within])
    return (accuracy > result.best.quality.accuracy).mean()


def late_mean(result):
    return np.mean([trial.quality.accuracy for trial in result.trials[24:]])


def test_it_finds_the_best_against_a_misleading_proxy_and_learns_to_propose_good_ones():
    task = misled_task()
    result = make_agent("model-ppo", **QUICK).search(task, 56, 0)
    random = make_agent("random").search(misled_task(), 56, 0)
    assert best_rank(task, result) < 0.01
    assert late_mean(result) > late_mean(random) + 0.1
    assert all(task.feasible(trial.costs) for trial in result.trials)


def test_it_does_no_better_than_chance_where_rewards_are_shuffled():
    """The negative control of the test above."""
    result = make_agent("model-ppo", **QUICK).search(misled_task(shuffle=0), 56, 0)
    random = make_agent("random").search(misled_task(shuffle=0), 56, 0)
    assert late_mean(result) < late_mean(random) + 0.1


def test_the_first_allocation_is_the_exact_optimum_of_the_proxy():
    task = formula_task(4, {"latency": 0.6})
    result = make_agent("model-ppo", **QUICK).search(task, 1, 0)
    table, every, rows = task.costs["latency_ms"], all_choices(task), np.arange(4)
    within = every[table[rows, every].sum(axis=1) <= task.limits["latency_ms"] * (1 + 1e-9)]
    least = task.predicted_loss[rows, within].sum(axis=1).min()
    assert task.predicted_loss[rows, task.choices(result.best.allocation)].sum() == pytest.approx(least)


def test_a_small_space_is_searched_to_its_end():
    result = make_agent("model-ppo", **QUICK).search(formula_task(2), 100, 0)
    assert result.evaluations == 9


def test_failed_evaluations_are_counted_and_left_behind():
    task = formula_task(4, {"latency": 0.6})
    first = make_agent("model-ppo", **QUICK).search(formula_task(4, {"latency": 0.6}), 20, 0).trials
    task.evaluator.fail_on = {first[0].allocation, first[-1].allocation}
    result = make_agent("model-ppo", **QUICK).search(task, 20, 0)
    assert result.evaluations == 20 and 1 <= len(result.faults) <= 2
    assert NonFiniteError.__name__ in result.faults[0]


def test_separate_widths():
    task = formula_task(3, {"latency": 0.6}, separate=True)
    result = make_agent("model-ppo", **QUICK).search(task, 20, 0)
    assert result.evaluations == 20 and all(task.feasible(trial.costs) for trial in result.trials)
    assert any(p.weight_bits != p.activation_bits for t in result.trials for p in t.allocation.values())


def test_costs_that_do_not_add_up():
    # The widest layer decides: what has no layer at 8 bits is feasible, 2 x 2 x 2 allocations.
    task = formula_task(3, {"latency": 0.6}, device=SharedBuffer())
    result = make_agent("model-ppo", **QUICK).search(task, 20, 0)
    assert result.evaluations == 8 and all(task.feasible(trial.costs) for trial in result.trials)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"batch": 0}, "batch is 0"), ({"rollouts": -1}, "rollouts"), ({"entropy": -0.1}, "entropy"),
     ({"first": 1}, "at least 2"), ({"optimism": float("nan")}, "optimism")],
)  # fmt: skip
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(AgentError, match=words):
        make_agent("model-ppo", **options)


def test_quality_is_the_only_thing_that_is_evaluated_and_each_allocation_once():
    task = formula_task(5, {"latency": 0.6})
    make_agent("model-ppo", **QUICK).search(task, 24, 0)
    asked = [allocation for allocation, _ in task.evaluator.asked]
    assert len(asked) == len(set(asked)) <= 25  # and the float network
