import gzip
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits

from amed_env.datasets.digits import digits_splits, digits_train, digits_training
from amed_env.errors import DataError

# Published figures hold for exactly these samples.
FINGERPRINTS = {
    "calibration": "32871af74bc51373888e72395507a3f4edd28ff638673efee834b9008f79852c",
    "search": "359a49b540165f368e811a115403a186ae04c7d85835f1be64f25595090eb373",
    "test": "525ce9bfe83a5c9db601875540b7e45626597a51d4956745271cb3e59e112951",
}


@pytest.fixture(scope="module")
def splits():
    return digits_splits()


@pytest.mark.parametrize("part", FINGERPRINTS)
def test_splits_are_pinned(splits, part):
    assert splits.parts()[part].fingerprint() == FINGERPRINTS[part]


def test_the_first_calibration_images_are_those_of_old():
    assert digits_splits(calibration_samples=200).calibration.fingerprint() == (
        "55163a03c79c5383a81d3334fab807c84fb84c6f612511deee0995d5431e2d7c"
    )


def test_sizes_shapes_and_range(splits):
    assert [len(part) for part in splits.parts().values()] == [797, 500, 500]
    for part in splits.parts().values():
        assert part.inputs.shape[1:] == (1, 8, 8)
        assert (part.inputs.min().item(), part.inputs.max().item()) == (0.0, 1.0)


def test_splits_are_balanced(splits):
    for part in (splits.search, splits.test):
        assert torch.bincount(part.labels).tolist() == [50] * 10
    assert torch.bincount(splits.calibration.labels[:200]).tolist() == [20] * 10
    assert torch.bincount(splits.calibration.labels).tolist() == torch.bincount(digits_train().labels).tolist()


def test_parts_are_disjoint_and_calibration_is_training_data(splits):
    train = digits_train()
    hashes = {name: set(part.sample_hashes()) for name, part in splits.parts().items()}
    hashes["train"] = set(train.sample_hashes())
    assert hashes["calibration"] <= hashes["train"]
    assert not hashes["search"] & hashes["test"]
    assert not hashes["train"] & (hashes["search"] | hashes["test"])
    assert sum(len(hashes[name]) for name in ("train", "search", "test")) == 1797


def test_images_keep_their_labels(splits):
    images, labels = load_digits(return_X_y=True)
    known = {tuple(image): label for image, label in zip(images, labels, strict=True)}
    for image, label in zip(splits.search.inputs, splits.search.labels, strict=True):
        assert known[tuple((image * 16).flatten().tolist())] == label


def test_calibration_size_is_a_prefix(splits):
    fewer = digits_splits(calibration_samples=64).calibration
    assert torch.equal(fewer.inputs, splits.calibration.inputs[:64])
    assert len(digits_splits(calibration_samples=797).calibration) == 797
    for size in (0, 798):
        with pytest.raises(DataError, match="choose 1 to 797"):
            digits_splits(calibration_samples=size)


def test_training_data_share_nothing_with_other_parts():
    data, splits = digits_training(), digits_splits()
    trained = {image.numpy().tobytes() for image in data.images}
    assert len(data) == 597 and len(data.validation) == 200
    for part in (data.validation, splits.search, splits.test):
        assert not trained & {image.numpy().tobytes() for image in part.inputs}


@pytest.mark.parametrize("found", ["nothing", "another file", "no archive", "no library"])
def test_images_are_the_same_where_the_library_keeps_them_elsewhere(found, tmp_path, monkeypatch):
    expected = digits_train()
    path = tmp_path / "datasets" / "data" / "digits.csv.gz"
    path.parent.mkdir(parents=True)
    if found == "another file":
        path.write_bytes(gzip.compress(b"0,1\n"))
    elif found == "no archive":
        path.write_bytes(b"0,1\n")
    spec = None if found == "no library" else SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("amed_env.datasets.digits.find_spec", lambda name: spec)
    assert digits_train().fingerprint() == expected.fingerprint()
