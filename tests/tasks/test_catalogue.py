"""Every task of the catalogue: its shapes, its splits, and who reads them."""

import itertools

import pytest
import torch

from amed_env.datasets.assets import ASSETS
from amed_env.tasks.catalogue import TASKS, NamedNetwork, named_network, named_workload

LAYERS = {
    "digits-cnn": 8,
    "fashion-cnn": 10,
    "cifar10-resnet8": 10,
    "cifar10-resnet20": 20,
    "cifar10-resnet56": 56,
    "kws-dscnn": 10,
}
NEEDS_DATA = [pytest.param(name, marks=pytest.mark.data(name)) for name in LAYERS if name != "digits-cnn"]


@pytest.mark.parametrize("name", LAYERS)
def test_shapes_are_traced_without_weights_and_data(name, tmp_path, monkeypatch):
    monkeypatch.setenv("AMED_DATA_DIR", str(tmp_path))
    assert len(named_workload(name)) == LAYERS[name]
    missing = named_network(name).missing()
    assert (missing is None) == (name == "digits-cnn")
    assert name in ASSETS or missing is None


def test_a_plugged_in_network_of_several_inputs():
    from small_networks import TwoInputs

    entry = NamedNetwork("two inputs", ((3, 8, 8), (5,)), TwoInputs, TwoInputs, None, lambda: "no data")
    TASKS.register("two-inputs", entry)
    try:
        assert named_workload("two-inputs").layer_names == ("conv", "numbers", "head")
    finally:
        TASKS.unregister("two-inputs")


def test_all_tasks_of_the_package_are_here():
    assert set(LAYERS) <= set(TASKS.names())
    for name in LAYERS:
        assert f"{LAYERS[name]} layers" in named_network(name).description


@pytest.mark.parametrize("name", ["digits-cnn", *NEEDS_DATA])
def test_no_sample_is_in_two_parts(name):
    entry = named_network(name)
    assert entry.missing() is None
    parts = entry.splits().parts()
    hashes = {part: set(samples.sample_hashes()) for part, samples in parts.items()}
    for first, second in itertools.combinations(hashes, 2):
        assert not hashes[first] & hashes[second], (first, second)
    for part in ("search", "test"):
        counts = torch.bincount(parts[part].labels)
        assert len(counts) == (12 if name == "kws-dscnn" else 10) and (counts > 0).all()
    assert parts["search"].sample_shape == entry.input_shape
