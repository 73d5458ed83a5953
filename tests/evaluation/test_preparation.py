"""A network is prepared once; what was prepared is kept, checked, and made anew where it does not hold."""

import json
import logging

import pytest
import torch
from safetensors.torch import load, save

from amed_env import make_task
from amed_env.errors import AmedError
from amed_env.evaluation import preparation
from amed_env.evaluation.prepared_file import FORMAT, read_prepared
from amed_env.problem.allocation import Precision
from amed_env.quantization.learned_rounding import RoundingLearner
from amed_env.quantization.recipe import LEARNED_WIDTHS, RECIPES

SHORT = RECIPES["network"].with_changes(steps=12, batch_size=16)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AMED_CACHE_DIR", str(tmp_path))
    return tmp_path / "prepared"


@pytest.fixture
def learned(monkeypatch):
    """Counts the steps of learning."""
    steps = []
    learn = RoundingLearner._learn_once
    monkeypatch.setattr(RoundingLearner, "_learn_once", lambda self: steps.append(self.step) or learn(self))
    return steps


def evaluator(recipe=SHORT):
    return make_task("digits-cnn", recipe=recipe, threads=1).evaluator


def test_what_was_learned_is_kept(cache, learned):
    first = evaluator()
    quality = first.evaluate(first.workload.uniform(2))
    assert learned == list(range(12))
    second = evaluator()
    assert second.evaluate(second.workload.uniform(2)) == quality
    assert second.fingerprint == first.fingerprint
    assert learned == list(range(12))
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]
    assert quality != evaluator("nearest").evaluate(first.workload.uniform(2))


def test_another_recipe_is_another_preparation(cache, learned):
    prints = {evaluator(recipe).fingerprint for recipe in (SHORT, "nearest", "bias-correction", "equalization")}
    assert len(prints) == 4 and len(learned) == 12


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A network, and the file of its preparation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMED_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        prepared = evaluator()
        prepared.prepare()
        (path,) = (preparation.cache_dir() / "prepared").iterdir()
    return prepared.network, path.read_bytes()


def rewritten(content, change, digest=True):
    """A file with other tensors; without a digest it looks like one of an older version."""
    tensors, size = load(content), int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    if not digest:
        metadata["made"] = json.dumps({key: v for key, v in json.loads(metadata["made"]).items() if key != "digest"})
    change(tensors)
    return save(tensors or {"x": torch.zeros(1)}, metadata)


def unsound(change):
    """Damage that shows in the numbers alone, as there is no digest."""
    return lambda content: rewritten(content, change, digest=False)


LAYER = "block1.conv1/2"
DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "format": lambda content: content.replace(FORMAT.encode(), b"another/format1"),
    "flipped bytes": lambda content: content[:-100] + bytes(b ^ 0x55 for b in content[-100:-50]) + content[-50:],
    "no layers": lambda content: rewritten(content, lambda tensors: tensors.clear()),
    "no scales": unsound(lambda tensors: tensors.pop(f"{LAYER}/scales")),
    "NaN": unsound(lambda tensors: tensors[f"{LAYER}/scales"].fill_(float("nan"))),
    "one scale": unsound(lambda tensors: tensors.update({f"{LAYER}/scales": torch.ones(1)})),
    "zero": unsound(lambda tensors: tensors[f"{LAYER}/activation_scale"].zero_()),
    "infinite bias": unsound(lambda tensors: tensors[f"{LAYER}/bias"].fill_(float("inf"))),
    "wide integers": unsound(lambda tensors: tensors[f"{LAYER}/integers"].fill_(100)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(kept, tmp_path, damage):
    network, content = kept
    path = tmp_path / "prepared.safetensors"
    path.write_bytes(unsound(lambda tensors: None)(content))
    assert len(read_prepared(network, path).widths) == len(network.layers) * len(LEARNED_WIDTHS)
    path.write_bytes(DAMAGES[damage](content))
    with pytest.raises(AmedError, match=r"prepared\.safetensors"):
        read_prepared(network, path)


def test_a_damaged_file_is_made_anew(cache, learned, caplog):
    caplog.set_level(logging.WARNING)
    expected = evaluator().fingerprint
    (path,) = cache.iterdir()
    path.write_bytes(DAMAGES["truncated"](path.read_bytes()))
    assert evaluator().fingerprint == expected
    assert len(learned) == 24 and "made anew" in caplog.text
    assert evaluator().fingerprint == expected and len(learned) == 24


def test_learning_that_was_interrupted_goes_on(cache, learned, monkeypatch):
    expected = evaluator().fingerprint
    for path in cache.iterdir():
        path.unlink()
    learned.clear()
    monkeypatch.setattr(preparation, "CHECKPOINT_SECONDS", 0.0)
    seen = []

    def interrupt(done, total):
        seen.append(done)
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator().prepare(interrupt)
    assert [path.suffix for path in cache.iterdir()] == [".checkpoint"]
    again = evaluator()
    again.prepare()
    assert learned == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert again.fingerprint == expected
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


def test_a_damaged_checkpoint_is_no_harm(cache, learned, caplog):
    caplog.set_level(logging.WARNING)
    expected = evaluator().fingerprint
    (path,) = cache.iterdir()
    path.rename(path.with_suffix(".checkpoint")).write_bytes(b"nonsense")
    learned.clear()
    assert evaluator().fingerprint == expected
    assert len(learned) == 12 and "begins anew" in caplog.text


def test_a_cache_that_cannot_be_written_is_only_reported(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("AMED_CACHE_DIR", str(tmp_path / "file"))
    found = evaluator()
    assert found.evaluate(found.workload.uniform(2)).samples == 500
    assert "cannot keep" in caplog.text


def test_nothing_is_unpickled(cache):
    """A checkpoint with a pickled object in it is refused, not run."""
    evaluator().prepare()
    (path,) = cache.iterdir()
    checkpoint = path.with_suffix(".checkpoint")
    path.unlink()
    torch.save({"step": print}, checkpoint)
    assert evaluator().evaluate(evaluator().workload.uniform(8)).samples == 500


def test_the_shipped_preparation_of_the_embedded_task_fits(cache, learned):
    """It must be made again whenever network, calibration samples or recipe change: benchmarks/prepare_networks.py."""
    found = make_task("digits-cnn").evaluator
    quality = found.evaluate(found.workload.uniform(2))
    assert not learned and not cache.exists()
    assert quality.accuracy > 0.9
    assert found.evaluate(found.workload.uniform(8)).accuracy > 0.985


class Clock:
    """Every look at it is a second later, so a step takes one second whatever the machine."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(preparation, "perf_counter", clock)
    monkeypatch.setattr("amed_env.quantization.learned_rounding.perf_counter", clock)


LONG = RECIPES["network"].with_changes(learning_rate=0.031)
"""As long as the default recipe, of which a preparation comes with the package."""


def recipe_of(seconds, precisions=None, recipe=LONG):
    made = evaluator(recipe)
    return preparation.recipe_within(
        made.network, made.recipe, made.samples("calibration").inputs, made.made_of, seconds, 1, 1, precisions
    )


TIED, WEIGHTS, BOTH = ((2, 2), (8, 8)), ((3, 32), (32, 32)), ((2, 2), (2, 8))


@pytest.mark.parametrize(("pairs", "activations"), [(TIED, "tied"), (WEIGHTS, "float"), (BOTH, "any"), (None, "any")])
def test_little_time_goes_into_what_will_be_asked_for(cache, clock, pairs, activations):
    precisions = None if pairs is None else [Precision(*pair) for pair in pairs]
    found = recipe_of(400, precisions)
    assert (found.activations, found.start) == (activations, "solved")
    assert found.steps in preparation.BRIEF_STEPS and found.steps <= preparation.SAFETY * 400


def test_all_steps_are_taken_where_there_is_time(cache, clock):
    assert recipe_of(1e9, [Precision(2, 2)]) == LONG


@pytest.mark.parametrize("recipe", ["nearest", "solved"])
def test_what_does_not_learn_needs_no_time(cache, learned, recipe):
    assert recipe_of(1, recipe=RECIPES[recipe]) == RECIPES[recipe]
    assert learned == []


def test_what_was_kept_for_other_widths_is_not_taken(cache, clock, monkeypatch):
    monkeypatch.setattr(preparation, "BRIEF_STEPS", (4, 2))
    made = evaluator(LONG)
    made.prepare(seconds=20, precisions=[Precision(2, 2)])
    assert (made.recipe.steps, made.recipe.activations) == (4, "tied")
    again = evaluator(LONG)
    again.prepare(seconds=20, precisions=[Precision(4, 4), Precision(8, 8)])
    assert again.fingerprint == made.fingerprint
    alone = evaluator(LONG)
    alone.prepare(seconds=20, precisions=[Precision(2, 32)])
    assert alone.recipe.activations == "float" and alone.fingerprint != made.fingerprint


def test_a_solved_network_is_better_than_one_rounded_to_the_nearest(cache, learned):
    solved, nearest = evaluator("solved"), evaluator("nearest")
    assert learned == []
    for bits in (2, 3):
        allocation = solved.workload.uniform(bits)
        assert solved.evaluate(allocation).score < nearest.evaluate(allocation).score  # divergence
