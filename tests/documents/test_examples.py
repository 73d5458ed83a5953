"""The networks of docs/examples are searched, with a step of training and few samples."""

import importlib.util
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, IterableDataset, Subset

import amed_env

FOLDER = Path(__file__).resolve().parents[2] / "docs/examples"
SAMPLES = 24


def few(part):
    """The first samples of a part, in the form that it has."""
    if isinstance(part, DataLoader):
        return DataLoader(few(part.dataset), batch_size=8, collate_fn=part.collate_fn)
    if isinstance(part, tuple):
        return tuple(array[:SAMPLES] for array in part)
    if isinstance(part, IterableDataset):
        part.count = SAMPLES
        return part
    return Subset(part, range(SAMPLES))


@pytest.mark.parametrize(
    ("name", "score", "metric"),
    [
        ("regressor", "squared-error", "mae"),
        ("language_model", "divergence", "perplexity"),
        pytest.param("segmenter", "divergence", "mean-iou", marks=pytest.mark.data("fashion-cnn")),
        pytest.param("detector", "squared-error", None, marks=pytest.mark.data("fashion-cnn")),
        pytest.param("keyword_spotter", "divergence", "macro-f1", marks=pytest.mark.data("kws-dscnn")),
    ],
)
def test_an_example_is_searched(name, score, metric, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where weights are kept
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    parts = example.build(steps=5)
    for part in ("calibration", "search", "test"):
        parts[part] = few(parts[part])
    task = amed_env.make_task(**parts, name=name, recipe="nearest", budget={"memory": 0.6})
    result = amed_env.make_agent("milp").search(task, 2)
    result.add_report()
    assert task.score.name == score and result.best.quality.score >= 0
    assert metric is None or metric in result.test["best"].metrics
    assert f"on {SAMPLES} unseen samples" in result.verdict.sentence()
    assert f"docs.examples.{name}:build" in example.__doc__
