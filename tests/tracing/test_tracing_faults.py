"""Networks that cannot be traced, or only in part: what is wrong is named."""

import warnings

import pytest
import torch
import torch.fx
from small_networks import OneBatchSize
from torch import nn

from amed_env import trace
from amed_env.errors import NetworkError, NonFiniteError


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (nn.Sequential(nn.ReLU()), torch.zeros(1, 4), "no layer to quantize"),
        (nn.Linear(4, 2), torch.zeros(1, 5), r"does not run on an input of shape \(1, 5\)"),
        (nn.Linear(4, 2), torch.zeros(4), "at least one sample"),
        (nn.Linear(4, 2), torch.zeros(0, 4), "at least one sample"),
        (nn.Linear(4, 2), [[0.0] * 4], "must be a tensor"),
        (lambda inputs: inputs, torch.zeros(1, 4), "must be a torch.nn.Module"),
    ],
    ids=["no layers", "wrong input", "no batch", "empty batch", "a list", "a function"],
)
def test_networks_that_cannot_be_used(network, inputs, message):
    with pytest.raises(NetworkError, match=message):
        trace(network, inputs, "mine")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["0.weight", "1.bias", "1.running_var", "3.bias"])
def test_weights_that_are_no_numbers_are_named(value, key):
    network = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2))
    network.state_dict()[key].view(-1)[1] = value
    with pytest.raises(NonFiniteError, match=rf"NaN or infinite weights in {key};"):
        trace(network, torch.ones(1, 4))


def test_a_mask_may_be_infinite():
    network = nn.Linear(4, 2)
    network.register_buffer("mask", torch.tensor([float("-inf")]))
    assert len(trace(network, torch.ones(1, 4)).workload) == 1


class Logarithm(nn.Module):
    def forward(self, inputs):
        return torch.log(inputs)


class Overflow(nn.Module):
    """A function, and no module, makes infinity."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, inputs):
        return self.fc(inputs) / 0.0


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (
            nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), Logarithm()), nn.Linear(3, 2)),
            r"'1.1' \(Logarithm\)",
        ),
        (Overflow(), "a function outside of its modules"),
    ],
)
def test_activations_that_are_no_numbers_are_named(network, named):
    for parameter in network.parameters():
        parameter.data.fill_(-1.0)
    with pytest.raises(NonFiniteError, match=named):
        trace(network, torch.ones(1, 4))


class Restless(nn.Module):
    """Changes between calls in the way that it is told."""

    def __init__(self, way):
        super().__init__()
        self.fc, self.way, self.calls = nn.Linear(4, 2), way, 0
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, inputs):
        self.calls += 1
        if self.way == "counts":
            return self.fc(inputs) * self.calls
        if self.way == "draws":
            return self.fc(nn.functional.dropout(inputs, 0.5, training=True))
        if self.way == "learns":
            self.seen += inputs.mean()
        if self.way == "grows":
            return self.fc(inputs).repeat(self.calls, 1)
        return self.fc(inputs)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("counts", "answers differently when it is called again"),
        ("draws", "draws random numbers"),
        ("learns", "changes seen when it is called"),
        ("grows", "by another shape"),
    ],
)
def test_a_module_that_changes_between_calls_is_refused(way, message):
    torch.manual_seed(0)
    with pytest.raises(NetworkError, match=message):
        trace(Restless(way), torch.ones(3, 4))


def test_dropout_and_batch_norm_do_not_count_as_changes():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2)).train()
    assert len(trace(network, torch.ones(3, 4)).workload) == 2


def test_weights_that_are_computed_are_folded():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3))  # its weight is no leaf once it has run
    network = nn.Sequential(layer, nn.Flatten())
    inputs = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = network(inputs)
    traced = trace(network, inputs, "own")
    assert traced.workload.layer_names == ("0",)
    torch.testing.assert_close(traced.module(inputs), expected)


class Branching(nn.Module):
    """Control flow on values, which no capture follows."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs):
        features = self.layer(inputs)
        if features.sum() > 0:
            features = features * 2
        return features


def test_control_flow_on_values_is_refused_with_the_line(capfd):
    with pytest.raises(NetworkError, match=r"test_tracing_faults.py, line \d+: if features.sum\(\) > 0:.*torch.where"):
        trace(Branching(), torch.rand(3, 4))
    assert capfd.readouterr().err == ""


def test_scripts_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(NetworkError, match="TorchScript"):
        trace(script, torch.rand(3, 4))


@pytest.mark.parametrize("by", [0.1, float("nan")])
def test_a_program_that_computes_something_else_is_refused_and_the_operation_named(monkeypatch, by):
    def spoils(module, layers):
        layers["2"].weight.data[0] += by
        return []

    network = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).eval()
    monkeypatch.setattr("amed_env.tracing.trace.fold_batch_norms", spoils)
    with pytest.raises(NetworkError, match=r"differs from the network itself by .*, first at .* in '2'"):
        trace(network, torch.rand(5, 4))


def test_further_samples_are_compared_too():
    class Rare(nn.Module):
        """A shape-free trick: a hook that only wakes up behind the capture's back."""

        def __init__(self):
            super().__init__()
            self.layer, self.awake = nn.Linear(4, 2), False

        def forward(self, inputs):
            return self.layer(inputs) * (2 if self.awake and not torch.compiler.is_exporting() else 1)

    network = Rare().eval()
    assert len(trace(network, torch.rand(2, 4), samples=torch.rand(6, 4)).workload) == 1
    network.awake = True
    with pytest.raises(NetworkError, match="differs from the network itself"):
        trace(network, torch.rand(2, 4), samples=torch.rand(6, 4))


def test_a_network_of_one_batch_size_runs_at_that_size():
    traced = trace(OneBatchSize(), torch.rand(8, 4))
    assert traced.batch_size == 8 and traced.workload.layers[0].m == 1


def test_an_encoder_with_nested_tensors_is_told_what_to_do():
    class Padded(nn.Module):
        def __init__(self, nested):
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)

        def forward(self, x):
            return self.encoder(x, src_key_padding_mask=x[..., 0] > 1)

    torch.manual_seed(0)
    x = torch.rand(3, 5, 4)
    x[:, 3:, 0] = 2
    assert len(trace(Padded(False).eval(), x).workload) == 6
    with pytest.raises(NetworkError, match=r"encoder takes nested tensors, .* enable_nested_tensor=False"):
        trace(Padded(True).eval(), x)


def test_products_that_are_no_layers_are_listed_with_their_multiplications():
    class Others(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.bilinear = nn.Linear(6, 4), nn.Bilinear(4, 4, 3)
            self.vector, self.points = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(5, 4))

        def forward(self, x):
            y = self.layer(x)
            return torch.mv(y, self.vector)[:, None] + torch.cdist(y, self.points)[:, :3] + self.bilinear(y, y)

    kept = {entry.type: entry.macs for entry in trace(Others().eval(), torch.rand(8, 6)).kept_float}
    assert kept == {"mv": 4, "cdist": 5 * 4, "bilinear": 3 * 4 * 4}
