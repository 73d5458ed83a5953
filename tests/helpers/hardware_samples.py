"""Networks and devices for the tests of the hardware room, written out by hand."""

import functools
import itertools

from amed_env import Layer, Workload
from amed_env.hardware import SystolicBackend, load_device, parse_device_config


def conv(name, out_hw, filters, channels, kernel, in_hw):
    """A convolution whose true output and input sizes are known."""
    return Layer(
        name,
        "conv",
        m=out_hw * out_hw,
        n=filters,
        k=channels * kernel * kernel,
        input_elements=channels * in_hw * in_hw,
        kernel=(kernel, kernel),
    )


# ResNet-18 on 224 x 224 images, He et al. 2016; (name, output size, filters, channels, kernel, input size).
RESNET18 = Workload(
    "resnet18",
    (
        conv("conv1", 112, 64, 3, 7, 224),
        conv("layer1.0.conv1", 56, 64, 64, 3, 56),
        conv("layer1.0.conv2", 56, 64, 64, 3, 56),
        conv("layer1.1.conv1", 56, 64, 64, 3, 56),
        conv("layer1.1.conv2", 56, 64, 64, 3, 56),
        conv("layer2.0.conv1", 28, 128, 64, 3, 56),
        conv("layer2.0.conv2", 28, 128, 128, 3, 28),
        conv("layer2.0.downsample", 28, 128, 64, 1, 56),
        conv("layer2.1.conv1", 28, 128, 128, 3, 28),
        conv("layer2.1.conv2", 28, 128, 128, 3, 28),
        conv("layer3.0.conv1", 14, 256, 128, 3, 28),
        conv("layer3.0.conv2", 14, 256, 256, 3, 14),
        conv("layer3.0.downsample", 14, 256, 128, 1, 28),
        conv("layer3.1.conv1", 14, 256, 256, 3, 14),
        conv("layer3.1.conv2", 14, 256, 256, 3, 14),
        conv("layer4.0.conv1", 7, 512, 256, 3, 14),
        conv("layer4.0.conv2", 7, 512, 512, 3, 7),
        conv("layer4.0.downsample", 7, 512, 256, 1, 14),
        conv("layer4.1.conv1", 7, 512, 512, 3, 7),
        conv("layer4.1.conv2", 7, 512, 512, 3, 7),
        Layer("fc", "linear", m=1, n=1000, k=512),
    ),
)

# ResNet-20 on CIFAR images, option A (no convolution in the shortcuts), He et al. 2016.
RESNET20 = Workload(
    "resnet20",
    (
        conv("conv1", 32, 16, 3, 3, 32),
        conv("layer1.0.conv1", 32, 16, 16, 3, 32),
        conv("layer1.0.conv2", 32, 16, 16, 3, 32),
        conv("layer1.1.conv1", 32, 16, 16, 3, 32),
        conv("layer1.1.conv2", 32, 16, 16, 3, 32),
        conv("layer1.2.conv1", 32, 16, 16, 3, 32),
        conv("layer1.2.conv2", 32, 16, 16, 3, 32),
        conv("layer2.0.conv1", 16, 32, 16, 3, 32),
        conv("layer2.0.conv2", 16, 32, 32, 3, 16),
        conv("layer2.1.conv1", 16, 32, 32, 3, 16),
        conv("layer2.1.conv2", 16, 32, 32, 3, 16),
        conv("layer2.2.conv1", 16, 32, 32, 3, 16),
        conv("layer2.2.conv2", 16, 32, 32, 3, 16),
        conv("layer3.0.conv1", 8, 64, 32, 3, 16),
        conv("layer3.0.conv2", 8, 64, 64, 3, 8),
        conv("layer3.1.conv1", 8, 64, 64, 3, 8),
        conv("layer3.1.conv2", 8, 64, 64, 3, 8),
        conv("layer3.2.conv1", 8, 64, 64, 3, 8),
        conv("layer3.2.conv2", 8, 64, 64, 3, 8),
        Layer("fc", "linear", m=1, n=10, k=64),
    ),
)

# A small residual network for 8 x 8 images, with a depthwise layer.
SMALL = Workload(
    "small",
    (
        conv("stem", 8, 16, 1, 3, 8),
        conv("block1.conv1", 8, 16, 16, 3, 8),
        conv("block1.conv2", 8, 16, 16, 3, 8),
        Layer("depthwise", "depthwise", m=64, n=1, k=9, groups=16, input_elements=1024, kernel=(3, 3)),
        conv("pointwise", 8, 32, 16, 1, 8),
        conv("block2.conv1", 4, 32, 32, 3, 8),
        conv("block2.conv2", 4, 32, 32, 3, 4),
        Layer("fc", "linear", m=1, n=10, k=32),
    ),
)

# A device whose constants make costs easy to work out by hand.
EASY_YAML = """\
format: amed-device/1
name: easy
description: A device for tests
array:
  rows: 4
  cols: 4
  dataflow: os
  clock_mhz: 1000
  overhead_cycles_per_layer: 7
  source: made up
precision:
  model: fixed
  weight_bits: [2, 4, 8]
  activation_bits: [2, 4, 8]
  accumulator_bits: 32
  source: made up
buffers:
  ifmap_kib: 1
  weight_kib: 1
  ofmap_kib: 1
  source: made up
dram:
  bandwidth_bits_per_cycle: 16
  source: made up
energy:
  mac:
    pj_by_bits: {2: 1, 8: 16}
    between: next
    source: made up
  sram:
    ifmap_read_pj_per_bit: 0.5
    ifmap_write_pj_per_bit: 0.25
    weight_read_pj_per_bit: 2
    weight_write_pj_per_bit: 3
    ofmap_read_pj_per_bit: 0.125
    ofmap_write_pj_per_bit: 1
    source: made up
  dram:
    pj_per_bit: 10
    source: made up
"""

known_device = functools.cache(load_device)
"""A shipped device, read once: for tests with many examples."""


def easy(*changes):
    """The easy device with some of its text replaced."""
    text = EASY_YAML
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return SystolicBackend(parse_device_config(text))


def separable(name, pixels, input_pixels, channels, filters):
    """A depthwise 3 x 3 layer and the pointwise one behind it."""
    return (
        Layer(
            f"{name}.depthwise",
            "depthwise",
            m=pixels,
            n=1,
            k=9,
            groups=channels,
            input_elements=channels * input_pixels,
            kernel=(3, 3),
        ),
        Layer(f"{name}.pointwise", "conv", m=pixels, n=filters, k=channels),
    )


def linear(*sizes):
    """Fully connected layers that follow each other."""
    return tuple(Layer(f"fc{i}", "linear", m=1, n=n, k=k) for i, (k, n) in enumerate(itertools.pairwise(sizes)))


# The four networks of MLPerf Tiny: anomaly detection, image classification, keyword spotting, visual wake words.
MLPERF_TINY = {
    "ad": Workload("ad", linear(640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)),
    "ic": Workload(
        "ic",
        (
            conv("conv0", 32, 16, 3, 3, 32),
            conv("conv1", 32, 16, 16, 3, 32),
            conv("conv2", 32, 16, 16, 3, 32),
            conv("conv3", 16, 32, 16, 3, 32),
            conv("conv4", 16, 32, 32, 3, 16),
            conv("conv5", 16, 32, 16, 1, 32),
            conv("conv6", 8, 64, 32, 3, 16),
            conv("conv7", 8, 64, 64, 3, 8),
            conv("conv8", 8, 64, 32, 1, 16),
            *linear(64, 10),
        ),
    ),
    "kws": Workload(
        "kws",
        (
            Layer("conv0", "conv", m=25 * 5, n=64, k=40, input_elements=490, kernel=(10, 4)),
            *(layer for i in range(4) for layer in separable(f"block{i}", 25 * 5, 25 * 5, 64, 64)),
            *linear(64, 12),
        ),
    ),
    "vww": Workload(
        "vww",
        (
            conv("conv0", 48, 8, 3, 3, 96),
            *(
                layer
                for i, (out, size, channels, filters) in enumerate(
                    [
                        (48, 48, 8, 16),
                        (24, 48, 16, 32),
                        (24, 24, 32, 32),
                        (12, 24, 32, 64),
                        (12, 12, 64, 64),
                        (6, 12, 64, 128),
                        *[(6, 6, 128, 128)] * 5,
                        (3, 6, 128, 256),
                        (3, 3, 256, 256),
                    ]
                )
                for layer in separable(f"block{i}", out * out, size * size, channels, filters)
            ),
            *linear(256, 2),
        ),
    ),
}
