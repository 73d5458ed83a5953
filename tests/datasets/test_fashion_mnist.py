import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amed_env.datasets import fashion_mnist
from amed_env.errors import DataError
from amed_env.support.data_files import FASHION_FOLDER, FASHION_TEST_IMAGES, FASHION_TEST_LABELS

COUNTS = {"train": 100, "test": 60}


@pytest.fixture
def small_set(monkeypatch, tmp_path):
    """The official layout with fewer images."""
    monkeypatch.setattr(fashion_mnist, "RECORDS", COUNTS)
    monkeypatch.setattr(fashion_mnist, "VALIDATION_SAMPLES", 30)
    monkeypatch.setattr(fashion_mnist, "SEARCH_SAMPLES", 20)
    (tmp_path / FASHION_FOLDER).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 100), ("t10k", 60)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
        sizes = count.to_bytes(4, "big")
        side = (28).to_bytes(4, "big")
        folder = tmp_path / FASHION_FOLDER
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sizes + side * 2 + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + sizes + labels.tobytes())
    return tmp_path


def test_reader_agrees_with_a_reading_byte_by_byte(small_set):
    images = (small_set / FASHION_TEST_IMAGES).read_bytes()
    labels = (small_set / FASHION_TEST_LABELS).read_bytes()
    found = fashion_mnist.read_images("test", small_set)
    for index, row, column in np.random.default_rng(1).integers(0, (60, 28, 28), (300, 3)):
        assert found[index, row, column] == images[16 + index * 784 + row * 28 + column]
    assert fashion_mnist.read_labels("test", small_set).tolist() == list(labels[8:])


def test_parts_are_dealt_once_and_balanced(small_set):
    splits = fashion_mnist.fashion_mnist_splits(small_set, calibration_samples=20)
    training, validation = fashion_mnist.fashion_mnist_training(small_set)
    assert [len(part) for part in splits.parts().values()] == [20, 20, 40]
    assert (len(training), len(validation)) == (70, 30)
    for part in (*splits.parts().values(), training, validation):
        assert torch.bincount(part.labels, minlength=10).unique().numel() == 1
        assert part.inputs.min() >= 0 and part.inputs.max() <= 1
    hashes = {name: set(part.sample_hashes()) for name, part in splits.parts().items()}
    known = set(training.sample_hashes())
    assert hashes["calibration"] <= known
    assert not known & set(validation.sample_hashes())
    assert not (known | set(validation.sample_hashes())) & (hashes["search"] | hashes["test"])
    assert not hashes["search"] & hashes["test"]


@pytest.mark.parametrize("size", [0, 71])
def test_calibration_takes_training_images_only(small_set, size):
    with pytest.raises(DataError, match="choose 1 to 70"):
        fashion_mnist.fashion_mnist_calibration(small_set, size)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is no IDX file of 60 bytes"),
        (lambda path: path.write_bytes(b"\x1f\x8b" + path.read_bytes()[2:]), "begins with 1f8b0801"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x0a"), "has a label 10"),
    ],
)
def test_damage_is_named_with_the_cure(small_set, damage, message):
    damage(small_set / FASHION_TEST_LABELS)
    with pytest.raises(DataError, match=message):
        fashion_mnist.fashion_mnist_splits(small_set)


@given(st.binary(max_size=80))
def test_any_other_bytes_are_refused_with_an_own_error(small_set, data):
    path = small_set / FASHION_TEST_LABELS
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        if data == whole:
            return
        with pytest.raises(DataError, match="Fashion-MNIST file"):
            fashion_mnist.read_labels("test", small_set)
    finally:
        path.write_bytes(whole)


@pytest.mark.data("fashion-cnn")
def test_no_real_image_is_in_two_files(amed_data_dir):
    training, validation = fashion_mnist.fashion_mnist_training(amed_data_dir)
    splits = fashion_mnist.fashion_mnist_splits(amed_data_dir)
    assert [len(part) for part in (training, validation, splits.search, splits.test)] == [54_000, 6_000, 2_000, 8_000]
    hashes = [set(part.sample_hashes()) for part in (training, validation, splits.search, splits.test)]
    assert len(set.union(*hashes)) == sum(map(len, hashes)) == 70_000


def test_training_data_are_the_training_part(small_set):
    data = fashion_mnist.fashion_mnist_training_data(small_set)
    training, validation = fashion_mnist.fashion_mnist_training(small_set)
    torch.testing.assert_close(data.images * data.scale, training.inputs, atol=1e-6, rtol=0)
    assert torch.equal(data.labels, training.labels)
    assert data.validation.fingerprint() == validation.fingerprint()
