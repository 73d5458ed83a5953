import numpy as np
import pytest
import torch

from amed_env.datasets import cifar10
from amed_env.datasets.samples import balanced_order
from amed_env.errors import DataError

RECORDS = 50


@pytest.fixture
def small_set(monkeypatch, tmp_path):
    """The official layout with 50 images a file and 30 search images."""
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)
    monkeypatch.setattr(cifar10, "SEARCH_SAMPLES", 30)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    source = np.random.default_rng(0)
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        records = source.integers(0, 256, (RECORDS, 3073), dtype=np.uint8)
        records[:, 0] = source.permutation(np.arange(RECORDS) % 10)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return tmp_path


def read_pixel(data, index, channel, row, column):
    """By the official description alone: the label, then 1024 red, 1024 green, 1024 blue bytes row by row."""
    mean, std = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))[channel]
    return (data[index * 3073 + 1 + channel * 1024 + row * 32 + column] / 255 - mean) / std


def test_reader_agrees_with_a_reading_byte_by_byte(small_set):
    data = (small_set / "cifar-10-batches-bin" / "test_batch.bin").read_bytes()
    samples = cifar10.cifar10_test_file(small_set)
    assert samples.inputs.shape == (RECORDS, 3, 32, 32)
    assert samples.labels.tolist() == [data[index * 3073] for index in range(RECORDS)]
    rng = np.random.default_rng(1)
    for index, channel, row, column in rng.integers(0, (RECORDS, 3, 32, 32), (500, 4)):
        expected = read_pixel(data, index, channel, row, column)
        assert samples.inputs[index, channel, row, column].item() == pytest.approx(expected, abs=1e-6)


def test_splits_deal_the_test_file_without_overlap(small_set):
    splits = cifar10.cifar10_splits(small_set, calibration_samples=20)
    whole = cifar10.cifar10_test_file(small_set)
    hashes = {name: part.sample_hashes() for name, part in splits.parts().items()}
    assert sorted(hashes["search"] + hashes["test"]) == sorted(whole.sample_hashes())
    assert [len(part) for part in splits.parts().values()] == [20, 30, 20]
    for part in splits.parts().values():
        counts = torch.bincount(part.labels, minlength=10)
        assert counts.max() - counts.min() == 0


def test_calibration_takes_training_images_with_their_labels(small_set):
    known = {}
    for number in range(1, 6):
        data = (small_set / "cifar-10-batches-bin" / f"data_batch_{number}.bin").read_bytes()
        for index in range(RECORDS):
            known[data[index * 3073 + 1 : (index + 1) * 3073]] = data[index * 3073]
    calibration = cifar10.cifar10_calibration(small_set, 250)
    mean, std = torch.tensor(cifar10.MEAN).view(3, 1, 1), torch.tensor(cifar10.STD).view(3, 1, 1)
    pixels = ((calibration.inputs * std + mean) * 255).round().to(torch.uint8)
    found = {image.numpy().tobytes(): label.item() for image, label in zip(pixels, calibration.labels, strict=True)}
    assert found == known


def test_smaller_calibration_sets_are_prefixes(small_set):
    assert torch.equal(
        cifar10.cifar10_calibration(small_set, 15).inputs, cifar10.cifar10_calibration(small_set, 40).inputs[:15]
    )
    for size in (0, 251):
        with pytest.raises(DataError, match="choose 1 to 250"):
            cifar10.cifar10_calibration(small_set, size)


def test_missing_file_says_which_and_what_to_do(small_set):
    (small_set / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    message = r"data_batch_3.bin does not exist; expected 153,650 bytes.*amed fetch cifar10-resnet20.*AMED_DATA_DIR"
    with pytest.raises(DataError, match=message):
        cifar10.cifar10_splits(small_set)


@pytest.mark.parametrize("change", [-1, 1, -3073])
def test_wrong_size_says_expected_and_found(small_set, change):
    path = small_set / "cifar-10-batches-bin" / "test_batch.bin"
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    with pytest.raises(DataError, match=rf"test_batch.bin has {len(data) + change:,} bytes, expected 153,650;"):
        cifar10.cifar10_splits(small_set)


def test_impossible_label_is_damage(small_set):
    path = small_set / "cifar-10-batches-bin" / "test_batch.bin"
    data = bytearray(path.read_bytes())
    data[3073 * 7] = 10
    path.write_bytes(data)
    with pytest.raises(DataError, match="has a label 10, expected 0 to 9: it is damaged"):
        cifar10.cifar10_splits(small_set)


@pytest.mark.data
def test_real_splits_are_fixed_balanced_and_disjoint(amed_data_dir):
    splits = cifar10.cifar10_splits(amed_data_dir)
    assert [len(part) for part in splits.parts().values()] == [8192, 2000, 8000]
    assert torch.bincount(splits.search.labels).tolist() == [200] * 10
    assert torch.bincount(splits.test.labels).tolist() == [800] * 10
    assert sorted(torch.bincount(splits.calibration.labels).tolist()) == [819] * 8 + [820] * 2
    hashes = {name: set(part.sample_hashes()) for name, part in splits.parts().items()}
    assert not hashes["calibration"] & hashes["search"]
    assert not hashes["calibration"] & hashes["test"]
    assert not hashes["search"] & hashes["test"]


@pytest.mark.data
def test_real_test_file_is_dealt_as_published(amed_data_dir):
    # Positions, not pixels, are pinned: they follow from the labels alone.
    labels = cifar10.open_records("test_batch.bin", amed_data_dir)[:, 0]
    assert balanced_order(labels, cifar10._TEST_SALT)[:10].tolist() == [
        7609,
        2504,
        9970,
        6670,
        2992,
        7834,
        7305,
        8641,
        3383,
        967,
    ]


@pytest.mark.data
def test_real_records_agree_with_a_reading_byte_by_byte(amed_data_dir):
    path = amed_data_dir / "cifar-10-batches-bin" / "test_batch.bin"
    with path.open("rb") as file:
        data = file.read(3073 * 20)
    samples = cifar10.cifar10_test_file(amed_data_dir)
    assert samples.labels[:20].tolist() == [data[index * 3073] for index in range(20)]
    for index, channel, row, column in np.random.default_rng(2).integers(0, (20, 3, 32, 32), (200, 4)):
        expected = read_pixel(data, index, channel, row, column)
        assert samples.inputs[index, channel, row, column].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("raw", [False, True])
def test_training_images_are_those_that_neither_validate_nor_test(small_set, monkeypatch, raw):
    monkeypatch.setattr(cifar10, "VALIDATION_SAMPLES", 40)
    data = cifar10.cifar10_training(small_set, raw=raw)
    inputs = data.images * data.scale.view(3, 1, 1) + data.offset.view(3, 1, 1)
    trained = {tuple(image.flatten()[:64].round(decimals=3).tolist()) for image in inputs}

    def shared(samples):
        return sum(tuple(image.flatten()[:64].round(decimals=3).tolist()) in trained for image in samples.inputs)

    splits = cifar10.cifar10_splits(small_set, calibration_samples=60, raw=raw)
    assert len(data) == len(trained) == 210 and len(data.validation) == 40
    # Calibration images are among those that are trained on, and look the same there.
    assert shared(splits.calibration) == 60
    assert shared(data.validation) == shared(splits.search) == shared(splits.test) == 0
    assert data.images.dtype == torch.uint8 and (data.shift, data.mirrored) == (4, True)
