"""The policy on a learned model: it finds what the proxy does not know, and nothing where there is nothing to learn."""

import numpy as np
import pytest
from small_task import FormulaEvaluator, all_choices, formula_task

from amed_env.agents import make_agent
from amed_env.errors import AgentError

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


@pytest.mark.parametrize(
    ("options", "words"),
    [({"batch": 0}, "batch is 0"), ({"rollouts": -1}, "rollouts"), ({"entropy": -0.1}, "entropy"),
     ({"first": 1}, "at least 2"), ({"optimism": float("nan")}, "optimism")],
)  # fmt: skip
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(AgentError, match=words):
        make_agent("model-ppo", **options)
