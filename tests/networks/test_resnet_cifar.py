import pytest
import torch
import torch.fx
from accuracy import count_correct
from torch import nn

from amed_env.datasets.assets import DIGESTS
from amed_env.datasets.cifar10 import cifar10_test_file
from amed_env.errors import NetworkError
from amed_env.networks import CifarResNet, pretrained_resnet20, pretrained_resnet56, resnet20, weights_digest
from amed_env.support.data_files import RESNET20_WEIGHTS, RESNET56_WEIGHTS


def quantizable(network):
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize(("depth", "weights"), [(20, 268_336), (56, 848_944)])
def test_layers_and_weights(depth, weights):
    layers = quantizable(CifarResNet(depth))
    assert len(layers) == depth
    # 3 x 3 filters: 3 -> 16, then n blocks of two a stage, widening at stages 2 and 3; at the end 64 -> 10.
    n = (depth - 2) // 6
    by_hand = 9 * (3 * 16 + 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2) + 640
    assert sum(layer.weight.numel() for layer in layers) == weights == by_hand


@pytest.mark.parametrize("depth", [2, 7, 18, 21])
def test_impossible_depths(depth):
    with pytest.raises(NetworkError, match="6 n \\+ 2"):
        CifarResNet(depth)


def test_state_dict_names_are_the_published_ones():
    names = {name for name in resnet20().state_dict() if name.endswith("weight")}
    expected = {"conv1.weight", "bn1.weight", "linear.weight"} | {
        f"layer{stage}.{block}.{kind}{i}.weight"
        for stage in (1, 2, 3)
        for block in (0, 1, 2)
        for kind in ("conv", "bn")
        for i in (1, 2)
    }
    assert names == expected


def test_shortcut_takes_every_second_pixel_and_pads_with_zeros():
    block = resnet20().layer2[0].eval()
    for module in (block.bn1, block.bn2):  # silence the residual branch, so that only the shortcut is left
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    inputs = torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs = block(inputs)
    assert outputs.shape == (2, 32, 4, 4)
    for channel in range(32):
        expected = inputs[:, channel - 8, ::2, ::2] if 8 <= channel < 24 else torch.zeros(2, 4, 4)
        assert torch.equal(outputs[:, channel], expected)


def test_fx_trace_computes_the_same():
    torch.manual_seed(0)
    network = resnet20()
    inputs = torch.randn(2, 3, 32, 32)
    assert torch.equal(torch.fx.symbolic_trace(network)(inputs), network(inputs))


def test_missing_weights_say_how_to_get_them(tmp_path):
    with pytest.raises(NetworkError, match="amed fetch cifar10-resnet20"):
        pretrained_resnet20(tmp_path)


@pytest.mark.data("cifar10-resnet56")
def test_pretrained_weights_are_the_published_ones(amed_data_dir):
    assert weights_digest(pretrained_resnet20(amed_data_dir).state_dict()) == DIGESTS[RESNET20_WEIGHTS]
    assert weights_digest(pretrained_resnet56(amed_data_dir).state_dict()) == DIGESTS[RESNET56_WEIGHTS]


@pytest.mark.data("cifar10-resnet56")
@pytest.mark.slow
# They get 9,173 and 9,339 of all 10,000 right, as published; a part of the images is enough to see a change.
@pytest.mark.parametrize(
    ("pretrained", "step", "correct"), [(pretrained_resnet20, 5, 1822), (pretrained_resnet56, 10, 933)]
)
def test_pretrained_accuracy(amed_data_dir, pretrained, step, correct):
    samples = cifar10_test_file(amed_data_dir)
    samples = samples.subset(range(0, len(samples), step))
    # An image or two may lie on the edge of rounding.
    assert count_correct(pretrained(amed_data_dir), samples) == pytest.approx(correct, abs=2)


@pytest.mark.data("cifar10-resnet20")
def test_two_flipped_bits_are_noticed(amed_data_dir, tmp_path):
    source, target = amed_data_dir / RESNET20_WEIGHTS, tmp_path / RESNET20_WEIGHTS
    content = bytearray(source.read_bytes())
    for place in (
        -5_000,
        -70_001,
    ):  # low bits of two weights: all stay finite, and the network answers a little otherwise
        content[place] ^= 1
    target.parent.mkdir(parents=True)
    target.write_bytes(bytes(content))
    with pytest.raises(NetworkError, match="other weights than the published ones"):
        pretrained_resnet20(tmp_path)
