"""Samples that do not fit in memory: the same samples, of which few are in memory at a time."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler

import amed_env
from amed_env.datasets import streaming
from amed_env.datasets.forms import as_samples
from amed_env.errors import DataError
from amed_env.evaluation import post_training
from amed_env.tasks import make

COUNT = 150
IMAGES = torch.rand(COUNT, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % 4


@pytest.fixture
def little_memory(monkeypatch):
    """As if 20 KiB, some 47 of these images, were all that a part may keep in memory."""
    monkeypatch.setattr(streaming, "IN_MEMORY_MIB", 20 / 1024)


class Items(Dataset):
    """Makes each item when it is asked for, and counts those that somebody still holds."""

    def __init__(self, images=IMAGES, labels=LABELS):
        self.images, self.labels = images, labels
        self.alive, self.most, self.read = 0, 0, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        item = self.images[index].clone()
        self.alive, self.read = self.alive + 1, self.read + 1
        self.most = max(self.most, self.alive)
        weakref.finalize(item, self._gone)
        return item, int(self.labels[index])

    def _gone(self):
        self.alive -= 1


class Passed(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return (self.items[index] for index in range(len(self.items)))


def mapped(tmp_path):
    stored = np.memmap(tmp_path / "images.raw", dtype=np.float32, mode="w+", shape=tuple(IMAGES.shape))
    stored[:] = IMAGES.numpy()
    stored.flush()
    return np.memmap(tmp_path / "images.raw", dtype=np.float32, mode="r", shape=tuple(IMAGES.shape)), LABELS


FORMS = {
    "items": lambda _: Items(),
    "iterable": lambda _: Passed(Items()),
    "loader": lambda _: DataLoader(Items(), batch_size=40),
    "shuffled loader": lambda _: DataLoader(Items(), batch_size=40, shuffle=True),
    "loader of a subset": lambda _: DataLoader(Items(), 40, sampler=SubsetRandomSampler(range(COUNT))),
    "loader of an iterable": lambda _: DataLoader(Passed(Items()), batch_size=40),
    "mapped file": mapped,
}


@pytest.mark.parametrize("form", FORMS)
def test_streamed_samples_are_the_same_samples(form, tmp_path, little_memory):
    expected = as_samples((IMAGES, LABELS), "search")
    samples = as_samples(FORMS[form](tmp_path), "search", in_memory=False)
    assert samples.streamed and not expected.streamed and len(samples) == COUNT
    assert torch.equal(samples.labels, LABELS)
    assert samples.fingerprint() == expected.fingerprint() and samples.sample_hashes() == expected.sample_hashes()
    for size in (7, 64, COUNT + 1):
        batches = list(samples.batches(size))
        assert [len(inputs) for inputs, _ in batches] == [len(inputs) for inputs, _ in expected.batches(size)]
        assert torch.equal(torch.cat([inputs for inputs, _ in batches]), IMAGES)
    chosen = torch.tensor([140, 3, 77, 3])
    assert torch.equal(samples.inputs[chosen], IMAGES[chosen]) and torch.equal(samples.inputs[2:5], IMAGES[2:5])
    few = samples.subset(chosen)
    assert not few.streamed and few.fingerprint() == expected.subset(chosen).fingerprint()
    many = samples.subset(range(COUNT - 1, 9, -1))
    order = range(10, COUNT) if "iterable" in form else range(COUNT - 1, 9, -1)
    assert many.streamed and many.fingerprint() == expected.subset(order).fingerprint()
    assert many.sample_hashes() == expected.subset(order).sample_hashes()


def test_what_fits_is_kept_and_read_once():
    items = Items()
    samples = as_samples(items, "search", in_memory=False)
    list(samples.batches(50))
    assert not samples.streamed and items.read == COUNT


def test_a_loader_of_a_part_has_that_part():
    loader = DataLoader(Items(), batch_size=8, sampler=SubsetRandomSampler([5, 99, 12]))
    for _ in range(2):
        assert torch.equal(as_samples(loader, "search").inputs, IMAGES[[5, 12, 99]])


class Augmented(Items):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + torch.rand(1), label


def test_samples_that_change_are_refused(little_memory):
    for source in (Augmented(), Passed(Augmented())):
        with pytest.raises(DataError, match="others when they are read a second time; leave random augmentation out"):
            as_samples(source, "search", in_memory=False)


def test_values_that_are_not_finite_are_found(little_memory):
    broken = IMAGES.clone()
    broken[97, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="1 samples are NaN or infinite, at index 97"):
        as_samples(Items(broken), "search", in_memory=False)


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    return body.eval()


def images(seed, count=COUNT):
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def searched(wrap):
    """A whole search of three allocations, with its finalists and report."""
    parts = {part: wrap(images(seed)) for seed, part in enumerate(("search", "test", "training"))}
    task = amed_env.make_task(
        network=network(), calibration=images(9, 32), **parts, recipe="nearest", budget={"latency": 0.6}, threads=1
    )
    result = amed_env.make_agent("random").search(task, 3)
    amed_env.choose_finalist(result, finalists=3)
    result.add_report()
    return task, result, parts


def test_a_search_holds_few_samples_and_finds_the_same(monkeypatch):
    monkeypatch.setattr(make, "SEARCH_SAMPLES", 100)
    _, expected, _ = searched(lambda inputs: (inputs, LABELS))
    monkeypatch.setattr(streaming, "IN_MEMORY_MIB", 20 / 1024)
    monkeypatch.setattr(post_training, "STREAMED_BATCH_MIB", 12 / 1024)
    gc.collect()
    gc.disable()  # tensors must not wait for it
    try:
        task, found, parts = searched(lambda inputs: Items(inputs))
    finally:
        gc.enable()
    assert all(task.evaluator.samples(split).streamed for split in ("search", "test"))
    for items in parts.values():
        # Those that were kept until they were too many, and what is read together.
        assert items.most <= 47 + 2 * 32 and items.read > 2 * COUNT
    assert found.best.allocation == expected.best.allocation
    assert found.best.quality.score == pytest.approx(expected.best.quality.score, rel=1e-4)
    assert found.finalists.samples == expected.finalists.samples == 2 * COUNT
    assert found.verdict.chosen.value == pytest.approx(expected.verdict.chosen.value, rel=1e-6)


def test_pixels_are_scaled_by_a_transform(tmp_path, little_memory):
    pixels = torch.randint(0, 256, (COUNT, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    seen = []

    def scaled(batch):
        seen.append(len(batch))
        return batch.float() / 255

    expected = as_samples((pixels.float() / 255, LABELS), "search")
    forms = [
        (pixels, LABELS),
        (pixels.numpy(), LABELS),
        Items(pixels),
        DataLoader(Items(pixels), 16),
        Passed(Items(pixels)),
    ]
    for form in forms:
        samples = as_samples(form, "search", transform=scaled, in_memory=False)
        assert samples.streamed and samples.fingerprint() == expected.fingerprint()
    assert max(seen) <= 64  # in batches, and never all of them
    kept = as_samples((pixels, LABELS), "calibration", transform=scaled)
    assert not kept.streamed and torch.equal(kept.inputs, expected.inputs)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            lambda batch: batch[0].float(),
            "made float32 of .* of uint8 of .*; it must return inputs with a row",
        ),
        (lambda batch: batch.resized(4), "the transform fails on uint8 of shape .*, a batch of the search samples: "),
        (lambda batch: batch, r"inputs are torch.uint8, .* a transform that does so, such as lambda batch: "),
        (None, r"inputs are torch.uint8, .* a transform that does so, such as lambda batch: "),
    ],
)
def test_transforms_that_do_not_fit_are_named(transform, message):
    pixels = torch.zeros(8, 3, 6, 6, dtype=torch.uint8)
    with pytest.raises(DataError, match=message):
        as_samples((pixels, LABELS[:8]), "search", transform=transform)
