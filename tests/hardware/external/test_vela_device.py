"""The device behind Arm's compiler: the graph that it is given, and its report. The compiler is a fake here."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from amed_env.hardware import load_device
from amed_env.hardware.external.command_format import request_text
from amed_env.tracing.trace import trace

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks" / "devices" / "vela"
FAKE = """#!{python}
import csv, sys
from pathlib import Path
model, folder = Path(sys.argv[1]), Path(sys.argv[3])
if b"broken" in model.read_bytes():
    sys.exit("cannot read the model")
with (folder / "network_summary_x.csv").open("w") as stream:
    stream.write("inference_time,sram_memory_used,dram_memory_used,off_chip_flash_memory_used\\n0.002,3.5,0.0,7.25\\n")
Path({log!r}).write_text(" ".join(sys.argv[1:]))
"""


class Shortcut(nn.Module):
    """A shortcut without weights and an odd padding, as residual networks for small images have them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=2)
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = functional.adaptive_avg_pool2d(self.depthwise(self.grouped(x)) + shortcut, 1)
        return torch.softmax(self.fc(torch.flatten(x, 1)), 1)


@pytest.fixture
def vela(monkeypatch):
    """The modules of the device."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import graph
    import vela_device

    yield vela_device, graph
    for name in ("graph", "vela_device", "tflite"):
        sys.modules.pop(name, None)


def request_of(weight_bits=4, network=None, activation_bits=8):
    network = (Shortcut() if network is None else network).eval()
    workload = trace(network, torch.zeros(1, 3, 8, 8)).workload
    return json.loads(request_text(workload, workload.uniform(weight_bits, activation_bits), "amed-request/2"))


def products(graph):
    """MACs of a graph, by the shapes of its tensors."""
    total = 0
    for operator in graph.operators:
        if operator.code in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            weights, result = graph.tensors[operator.inputs[1]].shape, graph.tensors[operator.outputs[0]].shape
            per_result = math.prod(weights[1:3]) if operator.code[0] == "D" else math.prod(weights[1:])
            total += math.prod(result) * per_result
    return total


def test_the_graph_has_every_operation_and_all_products(vela):
    request = request_of()
    graph = vela[1].Graph(request)
    assert products(graph) == sum(layer["m"] * layer["n"] * layer["k"] * layer["groups"] for layer in request["layers"])
    codes = [operator.code for operator in graph.operators]
    assert codes == [
        "PAD", "CONV_2D", "RELU", "CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "CONCATENATION", "ADD",
        "AVERAGE_POOL_2D", "RESHAPE", "FULLY_CONNECTED", "SOFTMAX",
    ]  # fmt: skip
    known = set(graph.inputs)
    for operator in graph.operators:
        for index in operator.inputs:
            assert index in known or graph.tensors[index].data is not None
        known.update(operator.outputs)
    assert [graph.tensors[index].shape for index in graph.inputs] == [(1, 8, 8, 3)]
    assert [graph.tensors[index].shape for index in graph.outputs] == [(1, 5)]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_have_the_values_of_their_width(vela, bits):
    graph = vela[1].Graph(request_of(bits))
    again = vela[1].Graph(request_of(bits))
    for tensor, same in zip(graph.tensors, again.tensors, strict=True):
        if tensor.name.endswith("weights"):
            assert tensor.data.dtype == np.int8 and np.abs(tensor.data).max() == 2 ** (bits - 1) - 1
            assert np.array_equal(tensor.data, same.data)


def test_the_report_of_the_compiler_is_the_answer(vela, tmp_path):
    compiler, log = tmp_path / "vela", tmp_path / "log"
    compiler.write_text(FAKE.format(python=sys.executable, log=str(log)))
    compiler.chmod(0o755)
    found = vela[0].answer(request_of(), "ethos-u65-256", str(compiler), lambda graph: b"model")
    assert found == {"total": {"latency_ms": 2.0, "sram_kib": 3.5, "flash_kib": 7.25}}
    assert "--accelerator-config ethos-u65-256" in log.read_text() and "Ethos_U65_High_End" in log.read_text()
    with pytest.raises(RuntimeError, match="cannot read the model"):
        vela[0].answer(request_of(), "ethos-u55-128", str(compiler), lambda graph: b"broken")


def test_what_cannot_be_run_or_written_is_said(vela):
    def never(graph):
        raise AssertionError

    def refusal(request):
        return vela[0].answer(request, "ethos-u55-128", "", never)["unsupported"]

    assert "activations have 8 bits" in refusal(request_of(activation_bits=4))
    assert "of kind 'gelu' is not known" in refusal(request_of(network=nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU())))
    assert "no operations" in refusal({**request_of(), "operations": []})


@pytest.mark.parametrize("name", ["ethos-u55", "ethos-u65"])
def test_the_device_files_are_in_order(name):
    device = load_device(FOLDER / f"{name}.yaml")
    assert device.name.startswith(name) and device.config.request == "amed-request/2"
    assert not device.capabilities().additive and f"--accelerator {device.name}" in " ".join(device.config.command)


def test_the_file_has_the_graph(vela):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    pytest.importorskip("ethosu.vela.tflite", reason="ethos-u-vela is not installed")
    from ethosu.vela.tflite.Model import Model
    from tflite import tflite_of

    graph = vela[1].Graph(request_of())
    content = tflite_of(graph)
    assert content[4:8] == b"TFL3"
    model = Model.GetRootAsModel(content, 0)
    network = model.Subgraphs(0)
    assert network.TensorsLength() == len(graph.tensors) and network.OperatorsLength() == len(graph.operators)
    for number, tensor in enumerate(graph.tensors):
        read = network.Tensors(number)
        assert read.Name().decode() == tensor.name and read.ShapeAsNumpy().tolist() == list(tensor.shape)
        if tensor.data is not None:
            assert model.Buffers(read.Buffer()).DataAsNumpy().tobytes() == tensor.data.tobytes()
    for number, operator in enumerate(graph.operators):
        read = network.Operators(number)
        assert read.InputsAsNumpy().tolist() == operator.inputs
        assert read.OutputsAsNumpy().tolist() == operator.outputs
