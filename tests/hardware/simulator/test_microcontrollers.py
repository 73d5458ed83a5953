"""Microcontrollers against published int8 figures that decided none of their constants."""

import pytest
import torch
from hardware_samples import MLPERF_TINY
from torch import nn

from amed_env import Layer, Workload
from amed_env.hardware import load_device
from amed_env.tracing.trace import trace

BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


def mobilenet(width, size, classes, channels=3):
    """MobileNet v1 as a list of layers (Howard et al. 2017), with padding `same`."""
    side, read = size // 2, int(32 * width)
    layers = [Layer("stem", "conv", side**2, read, 9 * channels, kernel=(3, 3), stride=(2, 2))]
    for number, (written, stride) in enumerate(BLOCKS):
        side = -(-side // stride)
        layers.append(Layer(f"depthwise{number}", "depthwise", side**2, 1, 9, groups=read))
        layers.append(Layer(f"pointwise{number}", "conv", side**2, int(written * width), read))
        read = int(written * width)
    return Workload("mobilenet", (*layers, Layer("head", "linear", 1, classes, read)))


def latency_ms(device, workload):
    return load_device(device).evaluate(workload, workload.uniform(8))["latency_ms"]


# STM32 model zoo, STM32H747I-DISCO, 400 MHz, STM32Cube.AI 10.0.0: networks of 5 classes.
@pytest.mark.parametrize(
    ("width", "size", "channels", "measured_ms", "error"),
    [
        (0.25, 224, 3, 163.78, 0.023),
        (0.5, 224, 3, 485.79, 0.027),
        (0.25, 96, 3, 29.94, 0.028),
        (0.25, 96, 1, 28.34, 0.058),
    ],
)
def test_stm32h7_against_further_networks(width, size, channels, measured_ms, error):
    predicted = latency_ms("stm32h7", mobilenet(width, size, 5, channels))
    assert predicted / measured_ms - 1 == pytest.approx(error, abs=0.002)


# MLPerf Tiny v1.0, closed division, STMicroelectronics with X-CUBE-AI 7.3: inferences a second.
@pytest.mark.parametrize(
    ("device", "network", "rate", "clock_mhz", "error"),
    [
        ("stm32h7", "ic", 18.401, 280, -0.203),  # another board of the family: the Nucleo-H7A3ZI-Q
        ("stm32h7", "kws", 59.667, 280, -0.062),
        ("stm32h7", "vww", 19.722, 280, -0.133),
        ("stm32l4", "kws", 13.323, 120, 0.097),
    ],
)
def test_boards_against_mlperf_tiny(device, network, rate, clock_mhz, error):
    cycles = load_device(device).evaluate(MLPERF_TINY[network], MLPERF_TINY[network].uniform(8))["cycles"]
    assert cycles / (clock_mhz * 1e6 / rate) - 1 == pytest.approx(error, abs=0.005)


# ESP-NN, README, cycles on an ESP32-S3; and the person detection of esp-tflite-micro, 54 ms.
@pytest.mark.parametrize(
    ("layer", "cycles", "error"),
    [
        (Layer("depthwise 5 x 5, padded", "depthwise", 144, 1, 25, groups=32), 366_102, -0.094),
        # Three input channels fill no vector register.
        (Layer("3 x 3 on three channels", "conv", 64, 64, 27), 643_689, -0.687),
    ],
)
def test_esp32_s3_against_further_kernels(layer, cycles, error):
    workload = Workload("kernel", (layer,))
    predicted = load_device("esp32-s3").evaluate(workload, workload.uniform(8))["cycles"]
    assert predicted / cycles - 1 == pytest.approx(error, abs=0.005)


def test_esp32_s3_against_a_network():
    assert latency_ms("esp32-s3", mobilenet(0.25, 96, 2, channels=1)) / 54 - 1 == pytest.approx(-0.017, abs=0.005)


class MobileNet(nn.Sequential):
    def __init__(self, width, classes):
        read = int(32 * width)
        layers = [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, read, 3, stride=2), nn.ReLU6()]
        for written, stride in BLOCKS:
            padding = [nn.ZeroPad2d((0, 1, 0, 1))] if stride == 2 else []
            depthwise = nn.Conv2d(read, read, 3, stride=stride, padding=0 if padding else 1, groups=read)
            layers += [*padding, depthwise, nn.ReLU6(), nn.Conv2d(read, int(written * width), 1), nn.ReLU6()]
            read = int(written * width)
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(read, classes))


# STM32 model zoo, memory for results in KiB. That compiler counts the network's input, which is the caller's here, and
# lets some layers write over what they read.
@pytest.mark.parametrize(
    ("width", "size", "measured_kib", "error"),
    [(0.25, 224, 272.96, 0.077), (0.5, 224, 449.58, 0.308), (0.25, 96, 66.96, -0.194)],
)
def test_memory_against_a_vendors_compiler(width, size, measured_kib, error):
    workload = trace(MobileNet(width, 5).eval(), torch.randn(1, 3, size, size)).workload
    predicted = workload.memory.plan(workload.uniform(8)).size / 1024
    assert predicted / measured_kib - 1 == pytest.approx(error, abs=0.005)
