"""The measured device: what its models compute, how it times, and what it keeps. No time is asserted."""

import numpy as np
import pytest
from hardware_samples import SMALL

from amed_env import Layer, Precision
from amed_env.errors import BackendError, DeviceError, UnsupportedPrecisionError
from amed_env.hardware import evaluate_cost, load_device
from amed_env.hardware.external import measured as measured_module
from amed_env.hardware.external.measured import OnnxRuntimeCpu, batch_times, least_noisy
from amed_env.hardware.external.onnx_layers import PAIRS, image_size, layer_model
from amed_env.support.machine import cpu_name
from amed_env.testing import HardwareConformance

onnx = pytest.importorskip("onnx", reason="the extra 'measure' is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'measure' is not installed")

LAYERS = {
    "conv": Layer("conv", "conv", m=20, n=6, k=27, kernel=(3, 3), stride=(2, 2)),
    "grouped": Layer("grouped", "conv", m=20, n=3, k=18, groups=2, kernel=(3, 3)),
    "flat": Layer("flat", "conv", m=6, n=4, k=10, kernel=(3, 3)),  # 10 is no multiple of 9: taken as 1 x 1
    "depthwise": Layer("depthwise", "depthwise", m=30, n=1, k=9, groups=8, kernel=(3, 3)),
    "linear": Layer("linear", "linear", m=2, n=10, k=64),
    "matmul": Layer("matmul", "matmul", m=8, n=5, k=16, groups=3),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AMED_CACHE_DIR", str(tmp_path / "cache"))


class TestConformance(HardwareConformance):
    def make_backend(self):
        return OnnxRuntimeCpu(batches=1)


def constants_of(made):
    model = onnx.load_from_string(made.model)
    return {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}


def run(made):
    session = onnxruntime.InferenceSession(made.model, providers=["CPUExecutionProvider"])
    return session.run(None, made.inputs)[0]


@pytest.mark.parametrize(
    ("name", "precision"), [(name, p) for name, layer in LAYERS.items() for p in PAIRS[layer.kind]], ids=str
)
def test_every_kernel_runs_and_writes_the_outputs_of_the_layer(name, precision):
    layer = LAYERS[name]
    made = layer_model(layer, precision)
    assert run(made).size == layer.m * layer.n * layer.groups
    stored = sum(array.nbytes for key, array in constants_of(made).items() if key == "w")
    if layer.kind != "matmul":
        assert stored == layer.weight_elements * precision.weight_bits / 8


def test_products_are_right():
    layer = LAYERS["linear"]
    made = layer_model(layer, Precision(32, 32))
    assert np.allclose(run(made), made.inputs["x"] @ constants_of(made)["w"], atol=1e-4)
    made = layer_model(layer, Precision(8, 8))
    made.inputs["x"] >>= 1  # without VNNI instructions, larger ones overflow the 16 bits of two products
    exact = 0.02 * (made.inputs["x"].astype(np.int64) @ constants_of(made)["w"].astype(np.int64))
    assert np.array_equal(run(made), np.clip(np.rint(exact), 0, 255).astype(np.uint8))


def test_a_convolution_has_the_products_of_its_layer():
    layer = LAYERS["conv"]
    made = layer_model(layer, Precision(32, 32))
    images, filters = made.inputs["x"][0], constants_of(made)["w"]
    expected = np.array(
        [
            [[np.sum(images[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3] * f) for x in range(5)] for y in range(4)]
            for f in filters
        ]
    )
    assert image_size(layer) == (4, 5)
    assert np.allclose(run(made)[0], expected, atol=1e-4)


@pytest.mark.parametrize(("pixels", "size"), [(1, (1, 1)), (36, (6, 6)), (20, (4, 5)), (13, (1, 13))])
def test_images_are_nearly_square(pixels, size):
    assert image_size(Layer("l", "conv", m=pixels, n=1, k=1)) == size


def test_times_are_means_of_batches_by_the_given_clock():
    now, calls = [0], [0]

    def run_once():
        calls[0] += 1
        now[0] += 250_000 if calls[0] != 8 else 650_000  # the second batch is disturbed once

    times = batch_times(run_once, 3, clock=lambda: now[0])
    assert times == [250_000, 350_000, 250_000] and calls[0] == 2 + 3 * 4


def test_long_runs_are_timed_once_at_least_and_not_for_ever():
    now = [0]

    def slow():
        now[0] += 10_000_000_000

    assert batch_times(slow, 20, clock=lambda: now[0]) == [10_000_000_000]


def test_what_was_measured_is_kept_by_shape_and_precision(monkeypatch):
    measured = []
    monkeypatch.setattr(measured_module, "batch_times", lambda run, batches: measured.append(1) or [3e6, 3.5e6, 3.25e6])
    device = OnnxRuntimeCpu()
    layer = LAYERS["linear"]
    first = device.layer_cost(layer, Precision(4, 8))
    assert first == {"latency_ms": 3.0, "latency_spread_ms": 0.25}
    same_shape = Layer("another", "linear", m=2, n=10, k=64)
    assert OnnxRuntimeCpu().layer_cost(same_shape, Precision(4, 8)) == first and len(measured) == 1
    device.layer_cost(layer, Precision(8, 8))
    device.layer_cost(Layer("l", "linear", m=2, n=11, k=64), Precision(4, 8))
    assert len(measured) == 3
    monkeypatch.setattr(measured_module, "_runtime_version", lambda: "another")
    device.layer_cost(layer, Precision(4, 8))
    monkeypatch.setattr(measured_module, "cpu_name", lambda: "another")
    device.layer_cost(layer, Precision(4, 8))
    assert len(measured) == 5


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ([[10, 10.9, 30]], [10, 10.9]),
        ([[10, 20, 20], [30, 30, 30]], [30, 30]),
        ([[10, 20, 20], [10, 15, 15], [9, 18, 18]], [10, 15]),
    ],
)
def test_what_is_noisy_is_measured_again(monkeypatch, measured, expected):
    left = list(measured)
    monkeypatch.setattr(measured_module, "batch_times", lambda run, batches: left.pop(0))
    assert least_noisy(None, 3).tolist() == expected and not left


def test_what_stays_noisy_is_not_kept_for_good(monkeypatch):
    measured = []

    def answer(run, batches):
        measured.append(batches)
        return np.array([1e6, 1.2e6])

    monkeypatch.setattr(measured_module, "least_noisy", answer)
    device, layer = OnnxRuntimeCpu(batches=1), LAYERS["linear"]
    for _ in range(3):
        assert device.layer_cost(layer, Precision(8, 8))["latency_spread_ms"] == pytest.approx(0.2)
    assert len(measured) == 1
    OnnxRuntimeCpu(batches=1).layer_cost(layer, Precision(8, 8))
    assert len(measured) == 2


def test_the_device_says_what_it_is():
    device = load_device("onnxruntime-cpu")
    capabilities = device.capabilities()
    assert not capabilities.deterministic and capabilities.additive and cpu_name()
    assert capabilities.metrics == {"latency_ms": "ms", "latency_spread_ms": "ms"}
    with pytest.raises(UnsupportedPrecisionError, match=r"'stem' \(conv\) with 4-bit weights; it supports 8, 32"):
        evaluate_cost(device, SMALL, SMALL.uniform(4))
    with pytest.raises(UnsupportedPrecisionError, match="at w8a32; it supports w8a8, w32a32"):
        evaluate_cost(device, SMALL, SMALL.uniform(8, 32))


def test_what_the_runtime_refuses_is_a_backend_error(monkeypatch):
    made = layer_model(LAYERS["linear"], Precision(8, 8))
    broken = type(made)(made.model[:-20], made.inputs)
    monkeypatch.setattr(measured_module, "layer_model", lambda layer, precision: broken)
    with pytest.raises(BackendError, match="cannot run layer 'linear'"):
        OnnxRuntimeCpu().layer_cost(LAYERS["linear"], Precision(8, 8))


def test_without_the_extra_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(measured_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        DeviceError, match=r"needs onnx and onnxruntime; install them: pip install 'amed-env\[measure\]'"
    ):
        OnnxRuntimeCpu()


@pytest.mark.parametrize("wrong", [0, True, 1.5])
def test_batches_are_whole_numbers(wrong):
    with pytest.raises(DeviceError, match="batches"):
        OnnxRuntimeCpu(wrong)
