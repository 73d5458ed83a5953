import copy
import pickle

import pytest
import torch
import torch.fx
from small_networks import Head, norms, shake
from torch import nn

from amed_env import trace
from amed_env.errors import NetworkError
from amed_env.tracing.packing import pack

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


class Attention(nn.Module):
    """One head over 6 places of 8 features, written out or by torch's own function."""

    def __init__(self, written_out):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 4, bias=False) for _ in range(3))
        self.written_out = written_out

    def forward(self, x):
        query, key, value = self.query(x), self.key(x), self.value(x)
        if not self.written_out:
            return nn.functional.scaled_dot_product_attention(query, key, value)
        return torch.softmax(query @ key.mT / 2.0, dim=-1).matmul(value)


class Blurred(nn.Module):
    """A fixed filter, which is no parameter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("filter", torch.full((3, 1, 2, 2), 0.25))

    def forward(self, x):
        return nn.functional.conv2d(x, self.filter, groups=3)


@pytest.mark.parametrize("written_out", [True, False])
def test_products_of_activations_are_layers(written_out):
    network = nn.Sequential(Attention(written_out), nn.Flatten(), nn.Linear(24, 3))
    traced = trace(network, torch.rand(5, 6, 8))
    products = [layer for layer in traced.workload if layer.kind == "matmul"]
    assert [layer.name for layer in products] == ["0.matmul", "0.matmul#2"]
    assert [(layer.m, layer.n, layer.k, layer.groups) for layer in products] == [(6, 6, 4, 1), (6, 4, 6, 1)]
    assert traced.workload.macs == 3 * 6 * 8 * 4 + 24 * 3 + 6 * 6 * 4 + 6 * 4 * 6
    assert traced.workload.weight_elements == 3 * 8 * 4 + 24 * 3
    assert traced.kept_float == ()


def test_a_fixed_filter_is_a_layer():
    traced = trace(Head(Blurred(), nn.Conv2d(3, 4, 1)), torch.rand(1, 3, 5, 5))
    assert traced.workload.layer_names[:2] == ("body.0", "body.1") and traced.kept_float == ()
    assert traced.workload.layers[0].kind == "depthwise"


def test_products_within_layers_are_not_listed_twice():
    assert trace(Head(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)), torch.rand(1, 3, 5, 5)).kept_float == ()


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


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(2, 1, 6, 6), torch.zeros(3, 1, 6, 6)), r"have \[2, 3\] samples"),
        ((), "at least one sample"),
        ((torch.zeros(2, 1, 6, 6), torch.tensor(2.0)), r"have \[2, 0\] samples"),
        ((torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)), r"inputs of shapes \[\(1, 1, 6, 6\), \(1, 1, 6, 6\)\]"),
    ],
)
def test_several_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(NetworkError, match=message):
        trace(Siamese(), inputs)


def test_a_layer_that_runs_under_another_name_is_not_called_idle():
    class Twofold(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.block, self.unused = nn.Sequential(self.conv, nn.ReLU()), nn.Linear(2, 2)

        def forward(self, x):
            return self.block(x)

    traced = trace(Twofold(), torch.rand(2, 3, 6, 6))
    assert traced.workload.layer_names == ("block.0",)
    assert [kept.name for kept in traced.kept_float] == ["unused"]
