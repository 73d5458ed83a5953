import copy
import pickle

import pytest
import torch
import torch.fx
from torch import nn

from amed_env.errors import NetworkError, NonFiniteError
from amed_env.packing import pack
from amed_env.tracing import trace


class Head(nn.Module):
    """A feature extractor, then class scores by averaging over all positions."""

    def __init__(self, *features):
        super().__init__()
        self.body = nn.Sequential(*features)

    def forward(self, inputs):
        return self.body(inputs).flatten(2).mean(dim=2)


# What is checked: name, module, input shape, then kind, m, n, k, groups, input, weight and output elements, all of
# them worked out by hand: out = floor((in + 2 pad - dilation (kernel - 1) - 1) / stride) + 1.
SHAPES = [
    ("plain", nn.Conv2d(3, 8, 3), (3, 8, 10), ("conv", 6 * 8, 8, 27, 1, 240, 216, 384)),
    ("padded", nn.Conv2d(3, 8, 3, padding=1), (3, 8, 10), ("conv", 80, 8, 27, 1, 240, 216, 640)),
    ("strided", nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 9, 8), ("conv", 5 * 4, 6, 36, 1, 288, 216, 120)),
    ("dilated", nn.Conv2d(2, 4, 3, dilation=2), (2, 9, 9), ("conv", 25, 4, 18, 1, 162, 72, 100)),
    ("same", nn.Conv2d(2, 4, 3, padding="same"), (2, 5, 5), ("conv", 25, 4, 18, 1, 50, 72, 100)),
    ("1x1", nn.Conv2d(16, 4, 1), (16, 5, 5), ("conv", 25, 4, 16, 1, 400, 64, 100)),
    ("oblong", nn.Conv2d(1, 2, (1, 5), stride=(2, 1)), (1, 6, 9), ("conv", 3 * 5, 2, 5, 1, 54, 10, 30)),
    ("grouped", nn.Conv2d(8, 12, 3, groups=4), (8, 6, 6), ("conv", 16, 3, 18, 4, 288, 216, 192)),
    ("depthwise", nn.Conv2d(8, 8, 3, groups=8, padding=1), (8, 6, 6), ("depthwise", 36, 1, 9, 8, 288, 72, 288)),
    ("multiplier", nn.Conv2d(4, 8, 3, groups=4), (4, 6, 6), ("conv", 16, 2, 9, 4, 144, 72, 128)),
    ("one channel", nn.Conv2d(1, 1, 3), (1, 6, 6), ("conv", 16, 1, 9, 1, 36, 9, 16)),
    ("conv1d", nn.Conv1d(3, 5, 4, stride=3), (3, 19), ("conv", 6, 5, 12, 1, 57, 60, 30)),
    ("depthwise1d", nn.Conv1d(6, 6, 5, groups=6), (6, 9), ("depthwise", 5, 1, 5, 6, 54, 30, 30)),
]


@pytest.mark.parametrize(("layer", "shape", "expected"), [row[1:] for row in SHAPES], ids=[row[0] for row in SHAPES])
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_of_convolutions(layer, shape, expected, batch):
    (found,) = trace(Head(layer), torch.zeros(batch, *shape)).workload
    assert found.name == "body.0"
    assert (
        found.kind,
        found.m,
        found.n,
        found.k,
        found.groups,
        found.input_elements,
        found.weight_elements,
        found.output_elements,
    ) == expected
    assert found.weight_elements == layer.weight.numel()


def test_kernel_and_stride_are_kept():
    (found,) = trace(Head(nn.Conv2d(1, 2, (1, 5), stride=(2, 1))), torch.zeros(1, 1, 6, 9)).workload
    assert (found.kernel, found.stride) == ((1, 5), (2, 1))
    (found,) = trace(Head(nn.Conv1d(1, 2, 3, stride=2)), torch.zeros(1, 1, 9)).workload
    assert (found.kernel, found.stride) == ((1, 3), (1, 2))


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.each, self.head = nn.Linear(12, 20), nn.Linear(20, 4)

    def forward(self, inputs):
        return self.head(self.each(inputs).mean(dim=1))


def test_linear_layers_on_a_sequence():
    each, head = trace(Sequence(), torch.zeros(5, 7, 12), "seq").workload
    assert (each.kind, each.m, each.n, each.k, each.input_elements, each.output_elements) == (
        "linear",
        7,
        20,
        12,
        84,
        140,
    )
    assert (head.kind, head.m, head.n, head.k, head.macs) == ("linear", 1, 4, 20, 80)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(4, 2)
        self.shared = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, inputs):
        once = self.shared(inputs)
        return self.head(self.shared(once[:, :, ::2]).mean(dim=3)[:, 0, :4])


def test_a_module_that_is_called_twice_counts_its_work_twice_and_its_weights_once():
    traced = trace(Twice(), torch.zeros(2, 3, 8, 8))
    assert traced.workload.layer_names == ("shared", "head")  # in the order in which they run
    shared = traced.workload.layers[0]
    assert (shared.m, shared.n, shared.k) == (64 + 32, 3, 27)
    assert shared.macs == (64 + 32) * 81
    assert shared.weight_elements == 81
    assert (shared.input_elements, shared.output_elements) == (288, 288)
    (kept,) = traced.kept_float
    assert (kept.name, kept.type) == ("unused", "Linear")
    assert "does not run" in kept.reason


def shake(network, seed=0):
    """Weights and statistics as if it were trained."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                if tensor is not None:
                    tensor.data.normal_(generator=generator)
            if module.running_var is not None:
                module.running_var.uniform_(0.2, 3, generator=generator)
    return network.eval()


def outputs_agree(network, inputs):
    network = shake(network)
    traced = trace(network, inputs[:1])
    with torch.no_grad():
        expected, found = network(inputs), traced.module(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    return traced


def norms(traced):
    return [module for module in traced.module.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (
            Head(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)),
            (3, 7, 7),
        ),
        (Head(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)), (6, 5, 5)),
        (Head(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), (3, 9)),
        (nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)), (5,)),
        (Head(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)), (3, 7, 7)),
    ],
    ids=["conv", "depthwise", "conv1d", "linear", "not affine"],
)
def test_folding_leaves_outputs_equal(network, shape):
    traced = outputs_agree(network, torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)))
    assert norms(traced) == []
    assert traced.kept_float == ()


def test_the_callers_network_is_not_changed():
    network = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trace(network, torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


class SharedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, inputs):
        return self.norm(self.second(self.norm(self.first(inputs)))).mean(dim=(2, 3))


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, inputs):
        raw = self.conv(inputs)
        return (self.norm(raw) + raw).mean(dim=(2, 3))


class SharedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, inputs):
        return self.conv(self.norm(self.conv(inputs))).mean(dim=(2, 3))


class NormOverTime(nn.Module):
    """The norm sees (N, T, C) and normalises T, which happens to equal C."""

    def __init__(self):
        super().__init__()
        self.each, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, inputs):
        return self.norm(self.each(inputs)).mean(dim=1)


@pytest.mark.parametrize(
    ("network", "shape", "kept"),
    [
        (Head(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3)), (3, 7, 7), "body.0"),
        (Head(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)), (3, 7, 7), "body.2"),
        (Head(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)), (3, 7, 7), "body.1"),
        (SharedNorm(), (3, 4, 4), "norm"),
        (TwoReaders(), (3, 4, 4), "norm"),
        (SharedLayer(), (3, 4, 4), "norm"),
        (NormOverTime(), (6, 6), "norm"),
    ],
    ids=["before", "after relu", "batch statistics", "shared norm", "two readers", "shared layer", "over time"],
)
def test_what_cannot_be_folded_is_kept_and_named(network, shape, kept):
    if kept == "body.1":  # its output depends on the batch, so only the report is compared
        traced = trace(network, torch.zeros(2, *shape))
    else:
        traced = outputs_agree(network, torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)))
    assert [entry.name for entry in traced.kept_float] == [kept]
    assert "not folded" in traced.kept_float[0].reason
    assert len(norms(traced)) == 1


class Branching(nn.Module):
    """Control flow on values, which no symbolic tracer follows."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, inputs):
        features = self.norm(self.conv(inputs))
        if features.sum() > 0:
            features = features * 2
        return self.head(features.mean(dim=(2, 3)))


def test_control_flow_is_followed_and_the_norm_is_kept_with_a_note():
    traced = outputs_agree(Branching(), torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(1)))
    assert traced.workload.layer_names == ("conv", "head")
    (kept,) = traced.kept_float
    assert kept.name == "norm"
    assert "cannot be traced symbolically" in kept.reason


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, inputs):
        return self.head(input=self.conv(input=inputs).mean(dim=(2, 3)))


def test_layers_that_are_called_with_a_keyword():
    assert trace(Keyword(), torch.zeros(1, 1, 6, 6)).workload.macs == 16 * 36 + 8


def test_harmless_modules_are_listed():
    network = Head(nn.Conv2d(3, 4, 1), nn.PReLU(4), nn.GroupNorm(2, 4))
    traced = trace(network, torch.zeros(1, 3, 4, 4))
    assert {(entry.name, entry.type) for entry in traced.kept_float} == {("body.1", "PReLU"), ("body.2", "GroupNorm")}


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.matrix = nn.Linear(4, 4), nn.Parameter(torch.zeros(4, 3))

    def forward(self, inputs):
        return self.fc(inputs) @ self.matrix


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.ConvTranspose2d(2, 2, 2)), r"1 \(ConvTranspose2d\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)), r"1 \(LSTM\)"),
        (nn.ModuleDict({"fc": nn.Linear(4, 4), "att": nn.MultiheadAttention(4, 2)}), r"att \(MultiheadAttention\)"),
        (nn.Sequential(nn.Conv3d(1, 2, 1)), r"0 \(Conv3d\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.GRUCell(4, 4)), r"1 \(GRUCell\)"),
        (Bare(), r"matrix \(a parameter of Bare\)"),
    ],
    ids=["transposed", "lstm", "attention", "conv3d", "cell", "bare"],
)
def test_products_that_would_be_missed_are_named(network, named):
    with pytest.raises(NetworkError, match=named) as caught:
        trace(network, torch.zeros(1, 4))
    assert "Supported are Conv1d, Conv2d" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (nn.Sequential(nn.ReLU()), torch.zeros(1, 4), "no layer to quantize"),
        (nn.Linear(4, 2), torch.zeros(1, 5), r"does not run on an input of shape \(1, 5\)"),
        (nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 5, 5), r"class scores of shape \(1, classes\)"),
        (nn.Linear(4, 2), torch.zeros(4), "at least one sample"),
        (nn.Linear(4, 2), torch.zeros(0, 4), "at least one sample"),
        (nn.Linear(4, 2), [[0.0] * 4], "must be a tensor"),
        (lambda inputs: inputs, torch.zeros(1, 4), "must be a torch.nn.Module"),
    ],
    ids=["no layers", "wrong input", "feature maps", "no batch", "empty batch", "a list", "a function"],
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


class Siamese(nn.Module):
    """Two images and a number, one convolution for both images."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(9, 2)
        self.side = nn.Conv2d(1, 4, 3, bias=False)

    def forward(self, first, second, number):
        left = torch.relu(self.norm(self.conv(first))).mean(dim=(2, 3))
        right = torch.relu(self.side(second)).mean(dim=(2, 3))
        return self.head(torch.cat([left, right, number], dim=1))


def test_a_network_of_several_inputs():
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(5, *shape, generator=generator) for shape in ((1, 6, 6), (1, 5, 7), (1,)))
    network = shake(Siamese())
    traced = trace(network, inputs)
    assert traced.workload.layer_names == ("conv", "side", "head")
    assert [layer.m for layer in traced.workload] == [16, 15, 1]
    assert norms(traced) == [] and type(network) is Siamese
    with torch.no_grad():
        expected = network(*inputs)
    packed = pack(inputs)
    assert packed.shape == (5, 36 + 35 + 1)
    for module in (traced.module, copy.deepcopy(traced.module), pickle.loads(pickle.dumps(traced.module))):
        torch.testing.assert_close(module(packed), expected)
        assert isinstance(module, Siamese)
    graph = torch.fx.symbolic_trace(traced.module)
    torch.testing.assert_close(graph(packed), expected)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(2, 1, 6, 6), torch.zeros(3, 1, 6, 6)), r"have \[2, 3\] samples"),
        ((), "at least one sample"),
        ((torch.zeros(2, 1, 6, 6), torch.zeros(2)), "at least one sample"),
        ((torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)), r"inputs of shapes \[\(1, 1, 6, 6\), \(1, 1, 6, 6\)\]"),
    ],
)
def test_several_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(NetworkError, match=message):
        trace(Siamese(), inputs)
