"""A network is prepared once; what was prepared is kept, checked, and made anew where it does not hold."""

import json
import logging

import pytest
import torch
from safetensors.torch import load, save

from amed_env import make_task
from amed_env.evaluation import preparation
from amed_env.evaluation.prepared_file import FORMAT
from amed_env.quantization.learned_rounding import RoundingLearner
from amed_env.quantization.recipe import RECIPES

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


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content.replace(FORMAT.encode(), b"another/format1"),
        lambda content: content[:-100] + bytes(byte ^ 0x55 for byte in content[-100:-50]) + content[-50:],
        lambda content: rewritten(content, lambda tensors: tensors.clear()),
    ],
    ids=["truncated", "empty", "format", "flipped bytes", "no layers"],
)
def test_a_damaged_file_is_made_anew(cache, learned, caplog, damage):
    caplog.set_level(logging.WARNING)
    first = evaluator()
    expected = first.fingerprint
    (path,) = cache.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    second = evaluator()
    assert second.fingerprint == expected
    assert len(learned) == 24 and "made anew" in caplog.text
    assert evaluator().fingerprint == expected and len(learned) == 24


def rewritten(content, change, digest=True):
    """A file with other tensors; without a digest it looks like one of an older version."""
    tensors, size = load(content), int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    if not digest:
        metadata["made"] = json.dumps({key: v for key, v in json.loads(metadata["made"]).items() if key != "digest"})
    change(tensors)
    return save(tensors or {"x": torch.zeros(1)}, metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("block1.conv1/2/scales"),
        lambda tensors: tensors["block1.conv1/2/scales"].fill_(float("nan")),
        lambda tensors: tensors.update({"block1.conv1/2/scales": torch.ones(1)}),
        lambda tensors: tensors["block1.conv1/2/activation_scale"].zero_(),
        lambda tensors: tensors["block1.conv1/2/bias"].fill_(float("inf")),
        lambda tensors: tensors["block1.conv1/2/integers"].fill_(100),
    ],
    ids=["no scales", "NaN", "one scale", "zero", "infinite bias", "wide integers"],
)
def test_unsound_numbers_are_noticed_without_a_digest(cache, learned, caplog, change):
    caplog.set_level(logging.WARNING)
    first = evaluator()
    expected = first.fingerprint
    (path,) = cache.iterdir()
    path.write_bytes(rewritten(path.read_bytes(), lambda tensors: None, digest=False))
    assert evaluator().fingerprint == expected and len(learned) == 12 and not caplog.text
    path.write_bytes(rewritten(path.read_bytes(), change, digest=False))
    assert evaluator().fingerprint == expected
    assert len(learned) == 24 and "block1.conv1" in caplog.text


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
