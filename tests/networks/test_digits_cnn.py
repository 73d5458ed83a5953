from importlib.resources import files

import torch
import torch.fx
from accuracy import count_correct
from torch import nn

from amed_env.datasets.digits import digits_splits
from amed_env.networks import DigitsCNN, pretrained_digits_cnn

LAYERS = [
    "stem",
    "block1.conv1",
    "block1.conv2",
    "depthwise",
    "pointwise",
    "block2.conv1",
    "block2.conv2",
    "classifier",
]


def test_it_has_eight_quantizable_layers():
    layers = [n for n, m in DigitsCNN().named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert layers == LAYERS
    depthwise = DigitsCNN().depthwise
    assert depthwise.groups == depthwise.in_channels == depthwise.out_channels > 1


def test_trained_accuracy():
    network, splits = pretrained_digits_cnn(), digits_splits()
    assert not network.training
    assert count_correct(network, splits.search) >= 0.985 * 500
    assert count_correct(network, splits.test) >= 0.98 * 500


def test_fx_trace_computes_the_same():
    network = pretrained_digits_cnn()
    traced = torch.fx.symbolic_trace(network)
    called = [n.target for n in traced.graph.nodes if n.op == "call_module"]
    assert [name for name in called if name in LAYERS] == LAYERS
    inputs = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(traced(inputs), network(inputs))


def test_weight_file_is_small():
    assert len((files("amed_env.networks") / "weights" / "digits_cnn.safetensors").read_bytes()) < 300_000
