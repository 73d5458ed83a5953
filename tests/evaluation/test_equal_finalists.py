"""The choice among finalists from their values of single samples."""

import json
import math

import numpy as np
import pytest

from amed_env import BitAllocation, Quality, Trial
from amed_env.evaluation.finalists import Finalist, Finalists
from amed_env.problem.score import DIVERGENCE, TOP_1

SAMPLES = 2_000


def finalist(name, values, latency, scored_by=DIVERGENCE, kept=True):
    values = np.asarray(values, dtype=np.float32)
    per_sample = {scored_by.name: values} if kept else {}
    quality = Quality(None, len(values), None, float(values.mean(dtype=np.float64)), scored_by, per_sample=per_sample)
    bits = 2 + len(name)
    trial = Trial(BitAllocation({"layer": (bits, bits)}), quality.lean, {"latency_ms": latency}, 0.0)
    return Finalist(name, trial, quality, quality)


def divergences(seed=0):
    return np.random.default_rng(seed).exponential(0.05, SAMPLES)


def test_the_best_score_is_chosen_where_it_is_known_to_be_the_best():
    base = divergences()
    choice = Finalists.of([finalist("1", base, 1.0), finalist("22", 0.8 * base, 3.0)], "latency_ms")
    assert choice.chosen is choice.best is choice.finalists[1] and choice.equal == (choice.best,)
    assert choice.sentence().startswith("the best of 2 on 2,000 samples: divergence 0.04")
    behind = choice.finalists[0].behind(choice.best)
    difference = 0.2 * base
    assert behind.value == pytest.approx(difference.mean(), rel=1e-5)
    assert behind.error == pytest.approx(difference.std(ddof=1) / math.sqrt(SAMPLES), rel=1e-4)


def test_of_equal_ones_the_cheapest_is_taken():
    base, noise = divergences(), np.random.default_rng(1).normal(0, 0.02, SAMPLES)
    error = noise.std(ddof=1) / math.sqrt(SAMPLES)
    near, far = base + noise - noise.mean() + 1.9 * error, base + noise - noise.mean() + 2.1 * error
    three = [finalist("1", base, 3.0), finalist("22", near, 2.0), finalist("333", far, 1.0)]
    choice = Finalists.of(three, "latency_ms")
    assert choice.best is three[0] and choice.equal == (three[0], three[1]) and choice.chosen is three[1]
    assert choice.sentence() == (
        "the 2 best of 3 cannot be told apart on 2,000 samples; the one of least latency is taken."
    )
    same_cost = Finalists.of([finalist("1", near, 2.0), finalist("22", base, 2.0)], "latency_ms")
    assert same_cost.chosen is same_cost.best  # at the same cost the better score


def test_more_is_better_where_it_is():
    right = np.concatenate([np.ones(900), np.zeros(100)])
    more = np.concatenate([np.ones(940), np.zeros(60)])
    choice = Finalists.of([finalist("1", right, 1.0, TOP_1), finalist("22", more, 2.0, TOP_1)], "latency_ms")
    assert choice.chosen.name == "22" and choice.finalists[0].behind(choice.best).value == pytest.approx(0.04)


def test_without_values_of_single_samples_nothing_is_called_equal():
    base = divergences()
    both = [finalist("1", base, 1.0, kept=False), finalist("22", base - 1e-6, 2.0, kept=False)]
    choice = Finalists.of(both, "latency_ms")
    assert choice.chosen.name == "22" and len(choice.equal) == 1
    document = json.loads(json.dumps(choice.to_json("network")))
    assert document["finalists"][0]["behind_best"] is None
    assert document["chosen"] == "22" and document["samples"] == SAMPLES
