"""Which of many allocations is recommended for deployment."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import amed_env
from amed_env.agents.recommendation import recommended_trial, standard_error
from amed_env.allocation import BitAllocation
from amed_env.evaluation.quality import Quality
from amed_env.evaluation.store import Trial

SAMPLES = 400


def trial(correct: int, loss: float, name: str = "a") -> Trial:
    return Trial(BitAllocation({name: (8, 8)}), Quality(correct, SAMPLES, loss), {"latency_ms": 1.0})


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    draws = np.random.default_rng(0).binomial(SAMPLES, 0.9, size=200_000) / SAMPLES
    assert standard_error(Quality(360, SAMPLES, 0.3)) == pytest.approx(draws.std(), rel=0.01)


def test_the_least_loss_within_one_standard_error_wins() -> None:
    # The standard error at 360 of 400 is 0.015, which is 6 samples.
    best, alike, too_bad = trial(360, 0.40), trial(354, 0.30), trial(353, 0.10)
    assert recommended_trial([best, alike, too_bad]) is alike
    assert recommended_trial([best, too_bad]) is best


def test_without_errors_only_equal_accuracies_are_alike() -> None:
    assert recommended_trial([trial(400, 0.2), trial(399, 0.1)]).quality.correct == 400  # type: ignore[union-attr]


def test_nothing_is_recommended_of_nothing() -> None:
    assert recommended_trial([]) is None


@given(st.lists(st.tuples(st.integers(1, SAMPLES), st.floats(0.0, 5.0)), min_size=1, max_size=20))
def test_nothing_is_better_in_both(found: list[tuple[int, float]]) -> None:
    trials = [trial(*values) for values in found]
    chosen = recommended_trial(trials)
    assert chosen is not None
    assert not any(
        other.quality.correct > chosen.quality.correct and other.quality.loss <= chosen.quality.loss for other in trials
    )


def test_it_is_better_on_new_samples_than_the_highest_accuracy() -> None:
    """Development cells of a real table: the test split has no part in the choice."""
    gains = []
    for device, budget in (("bops", "latency=0.55"), ("systolic-32", "energy=0.4"), ("edge-tpu-like", "memory=0.7")):
        task = amed_env.make_task("tabular/cifar10-resnet8", device=device, budget=[budget])
        result = amed_env.make_agent("local").search(task, 200, seed=0)
        result.add_report()
        gains.append(result.test["recommended"].accuracy - result.test["best"].accuracy)
    assert np.mean(gains) >= 0


def test_the_budget_holds_and_estimates_do_not_count() -> None:
    task = amed_env.make_task("tabular/digits-cnn", device="bitfusion", budget=["latency=0.4"])
    result = amed_env.make_agent("random").search(task, 30, seed=1)
    inside = [t for t in result.trials if task.feasible(t.costs)]
    least = max(t.quality.accuracy for t in inside)
    least -= standard_error(max((t.quality for t in inside), key=lambda quality: quality.accuracy))
    assert result.recommended is not None
    assert result.recommended.quality.loss == min(t.quality.loss for t in inside if t.quality.accuracy >= least)
    marked = Quality(SAMPLES, SAMPLES, 0.0, partial=True)
    result.trials.append(Trial(result.trials[0].allocation, marked, dict(result.trials[0].costs)))
    assert not result.recommended.quality.partial


def test_the_document_has_both_and_the_report_tests_both() -> None:
    task = amed_env.make_task("tabular/cifar10-resnet8", device="bitfusion", budget=["latency=0.5"])
    result = amed_env.make_agent("random").search(task, 60, seed=0)
    result.add_report()
    document = result.to_json()
    for name in ("best", "recommended"):
        allocation = BitAllocation.from_json(document[name]["allocation"], name)
        assert document[name]["test"] == task.quality(allocation, "test").to_json()
        assert document[name]["feasible"]
    assert document["best"]["search"]["accuracy"] >= document["recommended"]["search"]["accuracy"]
    assert document["recommended"]["search"]["loss"] <= document["best"]["search"]["loss"]
