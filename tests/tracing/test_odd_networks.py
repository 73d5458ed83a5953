"""What is captured is what runs: against the network itself in float64, before and after quantization."""

import pickle
import warnings

import pytest
import torch
from odd_networks import NETWORKS, Calling, rows
from torch import nn

from amed_env import trace
from amed_env.errors import NetworkError
from amed_env.quantization.network import QuantizedNetwork
from amed_env.tracing.digest import program_digest
from amed_env.tracing.packing import packed_inputs


def in_float64(network, inputs):
    """The answer of the network to doubled inputs, by plain torch."""
    many = inputs if isinstance(inputs, dict) else dict(enumerate(inputs if isinstance(inputs, tuple) else (inputs,)))
    doubled = {}
    for key, value in many.items():
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        doubled[key] = value.double() if is_float else value
    with torch.no_grad():
        return network(**doubled) if isinstance(inputs, dict) else network(*doubled.values())


def relative(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


NOT_KEPT = {"complex numbers"}


def texts(traced):
    """What the program says: own networks are known by its digest, so that must not depend on where it is from."""
    return traced.module.code, program_digest(traced.module)


def kept_again(odd, monkeypatch):
    """The network as the cache has it."""
    with monkeypatch.context() as patch:
        patch.setattr("amed_env.tracing.trace.capture", None)
        return trace(odd.make(), odd.inputs)


def listed(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - NOT_KEPT))
def test_what_is_kept_is_what_was_captured(name, monkeypatch):
    odd, inputs = NETWORKS[name], packed_inputs(NETWORKS[name].inputs)[0]
    first = trace(odd.make(), odd.inputs)
    kept = kept_again(odd, monkeypatch)
    facts = [
        (traced.workload, traced.kept_float, traced.batch_size, traced.remarks, traced.difference, texts(traced))
        for traced in (first, kept, pickle.loads(pickle.dumps(kept)))
    ]
    assert facts[0] == facts[1] == facts[2]
    for one, other in zip(listed(first.module(inputs)), listed(kept.module(inputs)), strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()
    state = first.module.state_dict()
    assert state.keys() == kept.module.state_dict().keys()
    for key, tensor in kept.module.state_dict().items():
        assert torch.equal(tensor, state[key]) and tensor.stride() == state[key].stride()
    networks = [QuantizedNetwork(traced, inputs) for traced in (first, kept)]
    for bits in (32, 8, 3):
        for network in networks:
            network.select(network.workload.uniform(bits))
        assert torch.equal(*(network(inputs) for network in networks))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_runs_is_captured_and_quantized(name):
    odd = NETWORKS[name]
    # Complex constants have no double of their own kind, and this network has no other weights than float32's.
    exact = (
        in_float64(odd.make().double(), odd.inputs) if name != "complex numbers" else odd.make()(odd.inputs).double()
    )
    traced = trace(odd.make(), odd.inputs)
    assert traced.workload.layer_names == odd.layers
    assert traced.batch_size == (5 if name == "one batch size" else None)
    inputs = packed_inputs(odd.inputs)[0]
    assert relative(traced.module(inputs), exact) < 1e-5
    network = QuantizedNetwork(traced, inputs)
    errors = {}
    for bits in (32, 8, 2):
        network.select(network.workload.uniform(bits))
        errors[bits] = relative(network(inputs), exact)
    assert errors[32] < 1e-5 and errors[8] < 0.06 and errors[8] < errors[2]
    copied, floats = pickle.loads(pickle.dumps(network)), QuantizedNetwork(traced, inputs, engine="float")
    for bits in (8, 3):
        for other in (network, copied, floats):
            other.select(network.workload.uniform(bits))
        assert torch.equal(copied(inputs), network(inputs)) and torch.equal(floats(inputs), network(inputs))


def test_multiplications_of_dilated_and_grouped_layers():
    odd = NETWORKS["depthwise, dilated, padded at one side"]
    layers = trace(odd.make(), odd.inputs).workload
    assert [layer.macs for layer in layers] == [4 * 9 * 196, 12 * 9 * 12 * 8, 6 * 12 * 7 * 7, 8 * 54 * 49, 4 * 32]


def test_work_of_a_recurrent_cell_counts_every_step_and_its_weights_once():
    odd = NETWORKS["recurrent cell in a loop"]
    cells = trace(odd.make(), odd.inputs).workload.layers[:2]
    assert {(layer.m, layer.n, layer.k, layer.weight_elements) for layer in cells} == {(4, 20, 6, 120), (4, 20, 5, 100)}


def test_autocast_is_held_to_half_precision_and_said():
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.first(x)
        return self.fc(x.float())

    torch.manual_seed(0)
    network = Calling(forward, first=nn.Linear(6, 6), fc=nn.Linear(6, 3)).eval()
    traced = trace(network, rows())
    assert traced.remarks == ("bfloat16 is computed in float32",)
    exact = network.fc.double()(network.first.double()(rows().double()))
    assert relative(traced.module(rows()), exact) < 1e-6


def test_scripts_inside_are_named():
    network = nn.Sequential(nn.Linear(6, 6), torch.jit.script(nn.Sequential(nn.Linear(6, 6))), nn.Linear(6, 3))
    with pytest.raises(NetworkError, match=r"1, 1\.0 is TorchScript, which cannot be captured; give the nn.Module"):
        trace(network, rows())


@pytest.mark.parametrize("reads", ["item", "numpy"])
def test_values_that_leave_torch_are_refused_with_the_line(reads):
    def item(self, x):
        return self.fc(x) * float(x.max().item())

    def numpy(self, x):
        return self.fc(torch.from_numpy(x.detach().numpy() * 2))

    network = Calling({"item": item, "numpy": numpy}[reads], fc=nn.Linear(6, 3))
    with pytest.raises(NetworkError, match=rf"test_odd_networks.py, line \d+: return self.fc.*{reads}\("):
        trace(network, rows())
