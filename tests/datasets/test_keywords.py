import numpy as np
import pytest
import torch

from amed_env.datasets import keywords
from amed_env.errors import DataError
from amed_env.support.data_files import KEYWORDS_FILE


@pytest.fixture
def archive(tmp_path):
    """A file of the published layout, with three samples that stand there twice."""
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.integers(-128, 128, (1000, 490), dtype=np.int8),
        "y": (np.arange(1000) % 12).astype(np.uint8),
        "scale": np.float32(0.5),
        "zero": np.int16(83),
    }
    for copy, original in ((5, 600), (13, 900), (700, 2)):
        arrays["x"][copy] = arrays["x"][original]
    path = tmp_path / KEYWORDS_FILE
    np.savez(path, **arrays)
    return path, arrays


def test_features_are_dequantized(archive, tmp_path):
    _, arrays = archive
    samples = keywords.keyword_samples(tmp_path)
    assert samples.inputs.shape == (1000, 1, 49, 10)
    assert samples.inputs[7, 0, 3, 4].item() == (int(arrays["x"][7, 34]) - 83) * 0.5
    assert samples.labels.tolist() == arrays["y"].tolist()


def test_parts_are_disjoint_even_where_samples_have_copies(archive, tmp_path):
    parts = keywords.keyword_splits(tmp_path).parts()
    assert {name: len(part) for name, part in parts.items()} == {"calibration": 200, "search": 400, "test": 400}
    hashes = {name: set(part.sample_hashes()) for name, part in parts.items()}
    assert sum(map(len, hashes.values())) == len(set.union(*hashes.values())) == 997
    assert sum(len(part) for part in parts.values()) == 1000
    for name in ("calibration", "search"):
        counts = torch.bincount(parts[name].labels)
        assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "do not exist"),
        (lambda path: path.write_bytes(b"no archive"), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "cannot be read"),
        (lambda path: np.savez(path, x=np.zeros((3, 490), np.int8)), "cannot be read: KeyError"),
        (
            lambda path: np.savez(path, x=np.zeros((3, 490), np.int8), y=np.zeros(3), scale=1.0, zero=0),
            r"'x' has shape \(3, 490\), expected \(1000, 490\)",
        ),
    ],
)
def test_damage_is_named_with_the_cure(archive, tmp_path, damage, message):
    damage(archive[0])
    with pytest.raises(DataError, match=message) as caught:
        keywords.keyword_samples(tmp_path)
    assert "amed fetch kws-dscnn" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.full(1000, 200, np.uint8)}, "labels are 200 to 200, expected 0 to 11"),
        ({"y": np.zeros(1000)}, "'y' holds float64, expected integers"),
        ({"x": np.zeros((1000, 490), np.float32)}, "'x' holds float32, expected integers"),
        ({"scale": np.float32(0)}, "the scale is 0.0"),
        ({"scale": np.float32(-0.5)}, "the scale is -0.5"),
        ({"scale": np.float32("nan")}, "the scale is nan"),
    ],
)
def test_values_that_the_file_cannot_have_are_refused(archive, tmp_path, change, message):
    path, arrays = archive
    np.savez(path, **{**arrays, **change})
    with pytest.raises(DataError, match=message):
        keywords.keyword_samples(tmp_path)


def test_flipped_bits_in_packed_samples_are_damage(archive, tmp_path):
    path, arrays = archive
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    for place in range(200, 5_000, 97):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="cannot be read"):
        keywords.keyword_samples(tmp_path)


@pytest.mark.data("kws-dscnn")
def test_the_real_splits_are_fixed(amed_data_dir):
    splits = keywords.keyword_splits(amed_data_dir)
    assert torch.bincount(splits.search.labels).tolist() == [34, 34, 34, 33, 34, 33, 33, 32, 32, 33, 34, 34]
    assert torch.bincount(splits.test.labels).min() == 19
