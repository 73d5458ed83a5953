"""ONNX files against the evaluator: what they answer, what they hold, and what they say of themselves."""

import copy
import dataclasses
import importlib.util
import logging

import numpy as np
import pytest
import torch
from odd_networks import NETWORKS, Calling
from torch import nn

from amed_env import make_task, trace
from amed_env.deploy.onnx import first_difference, qonnx, run_onnx, run_qonnx, write, write_onnx, write_qonnx
from amed_env.deploy.onnx.capture import graph_of
from amed_env.deploy.program import program_of
from amed_env.errors import InputError, NetworkError
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.quantization.network import QuantizedNetwork
from amed_env.tracing.packing import packed_inputs

onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
for package in ("onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="the extra 'export' is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
STYLES = ("integer", "qdq")
STORAGES = ("packed", "types", "int8")
WEIGHT_BITS, ACTIVATION_BITS = (7, 5, 4, 2, 3, 6, 8), (6, 8, 5, 4, 7)


@pytest.fixture(scope="module", autouse=True)
def _captured_once():
    """Torch's exporter takes seconds, and what it writes depends on the network alone."""
    graphs = {}

    def once(program, opset, **how):
        key = (id(program.module), bool(program.stored), opset, *how)
        if key not in graphs:
            graphs[key] = program, graph_of(program, opset, **how)  # the program too, so that no other gets its id
        return copy.deepcopy(graphs[key][1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "graph_of", once)
        patch.setattr(qonnx, "graph_of", once)
        yield


def mixed(names):
    """An allocation with every width, most of them odd."""
    precisions = {}
    for number, name in enumerate(names):
        weight, activation = WEIGHT_BITS[number % len(WEIGHT_BITS)], ACTIVATION_BITS[number % len(ACTIVATION_BITS)]
        precisions[name] = Precision(weight, activation)
    return BitAllocation(precisions)


def quantized(network, inputs):
    """A network of our own and what it reads."""
    packed, _ = packed_inputs(inputs)
    return QuantizedNetwork(trace(network.eval(), inputs), packed), packed


def program(network, allocation=None):
    return program_of(network, mixed(network.workload.layer_names) if allocation is None else allocation)


@pytest.fixture(scope="module")
def digits():
    """The quantized network of a task, and its test samples."""
    evaluator = make_task("digits-cnn", recipe="nearest", threads=1).evaluator
    return evaluator.network, evaluator._splits.test.inputs


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.fixture(scope="module")
def images():
    """A network of two layers, and what it reads."""
    torch.manual_seed(0)
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return quantized(convolution, noise(5, 3, 6, 6))


def initializers(path):
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


def unused(path):
    """Names of constants that nothing reads."""
    graph = onnx.load(path).graph
    read = {name for node in graph.node for name in node.input}
    return [tensor.name for tensor in graph.initializer if tensor.name not in read]


def relative(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("style", STYLES)
def test_it_answers_as_the_evaluator_and_has_the_size_that_the_allocation_promises(digits, style, storage, tmp_path):
    network, inputs = digits
    exported = program(network)
    written = write_onnx(exported, tmp_path / "model.onnx", style, storage)
    expected = network.run_in_float(inputs).numpy()

    found = run_onnx(written.path, inputs.numpy(), written.session_options)

    if style == "integer":
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(run_onnx(written.path, inputs.numpy()), expected)
    else:
        assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99
        assert written.session_options == {"session.disable_quant_qdq": "1"}
    weights = sum(layer.module.weight.numel() for layer in exported.layers.values())
    assert written.weight_bytes == (weights if storage == "int8" else exported.weight_bytes)
    channels = sum(len(layer.scales) for layer in exported.layers.values())
    assert written.bytes == written.path.stat().st_size
    assert written.bytes <= written.weight_bytes + 9 * channels + 1100 * len(exported.layers)


@pytest.mark.parametrize("first", [False, True])
def test_scales_are_multiplied_in_the_order_of_the_evaluators_kernels(digits, first, tmp_path, monkeypatch):
    network, inputs = digits
    exported = dataclasses.replace(program(network), scales_first=first)
    monkeypatch.setattr("amed_env.quantization.rescaling.multiplies_scales_first", lambda: first)
    written = write_onnx(exported, tmp_path / "model.onnx", "integer")
    np.testing.assert_array_equal(run_onnx(written.path, inputs.numpy()), network.run_in_float(inputs).numpy())


@pytest.mark.parametrize("bits", [2, 3, 5, 7, 8])
def test_packed_weights_are_the_integers(digits, bits, tmp_path):
    network, _ = digits
    exported = program(network, network.workload.uniform(bits))
    written = write_onnx(exported, tmp_path / "model.onnx", "qdq", "packed")

    tensors = initializers(written.path)

    for name, layer in exported.layers.items():
        stored = onnx.numpy_helper.to_array(tensors[f"{name}.weight"])
        flipped = layer.integers.reshape(len(layer.integers), -1).max(1) == 2 ** (bits - 1)
        signs = np.where(flipped, -1, 1).reshape(-1, *[1] * (layer.integers.ndim - 1))
        integers = layer.integers.astype(int) * signs
        if bits == 8:
            np.testing.assert_array_equal(stored, integers + 128)
            continue
        values = np.zeros(stored.shape[0] * 8, int)
        for plane in range(bits):  # the last one is the sign's
            weight = -(2**plane) if plane == bits - 1 else 2**plane
            values += weight * np.unpackbits(stored[:, 0, plane], bitorder="little").astype(int)
        np.testing.assert_array_equal(values[: integers.size].reshape(integers.shape), integers)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("bits", "opset"), [(4, 21), (2, 25)])
def test_widths_that_have_a_type_are_stored_in_it(images, style, bits, opset, tmp_path):
    network, inputs = images
    exported = program(network, network.workload.uniform(bits))

    written = write_onnx(exported, tmp_path / "model.onnx", style, "types", opset=opset)

    types = {tensor.data_type for name, tensor in initializers(written.path).items() if name.endswith(".weight")}
    prefix = "UINT" if style == "integer" else "INT"
    assert types == {onnx.TensorProto.DataType.Value(f"{prefix}{bits}")}
    assert written.weight_bytes == exported.weight_bytes and written.opset == opset
    found = run_onnx(written.path, inputs.numpy(), written.session_options)
    assert relative(found, network.run_in_float(inputs).numpy()) < (1e-9 if style == "integer" else 1e-5)


def test_widths_without_a_type_are_packed_and_named(digits, tmp_path):
    network, _ = digits
    written = write_onnx(program(network), tmp_path / "model.onnx", "qdq", "types")
    (remark,) = written.remarks
    assert "stem, block1.conv1, depthwise" in remark and "packed" in remark and "block1.conv2" not in remark


def convolutions():
    return nn.Sequential(
        *(nn.Conv2d(4, 8, (4, 3), padding="same", groups=2), nn.ReLU()),  # an even kernel: one more pad behind
        *(nn.Conv2d(8, 8, 3, dilation=2, groups=8, padding="valid"), nn.ReLU6()),
        *(nn.Conv2d(8, 5, 3, stride=(2, 1), padding=(1, 0)), nn.LeakyReLU()),
        nn.ConvTranspose2d(5, 6, (3, 2), (2, 3), (0, 1), output_padding=(1, 0), dilation=(1, 2)),
        nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
    )


def over_time():
    """A convolution over time, a layer over channels of every step, and a product of activations."""

    def forward(self, x):
        x = torch.relu(self.conv(x)).transpose(1, 2)
        queries, keys = self.queries(x), self.keys(x)
        weights = torch.softmax(queries @ keys.transpose(1, 2), -1)
        return self.head((weights @ self.norm(x)).mean(1))

    return Calling(
        forward,
        conv=nn.Conv1d(5, 6, 3, padding=2, dilation=2),
        queries=nn.Linear(6, 7),
        keys=nn.Linear(6, 7, bias=False),
        norm=nn.LayerNorm(6),
        head=nn.Linear(6, 3),
    )


OWN = {
    "convolutions": (convolutions, noise(6, 4, 12, 13)),
    "over time": (over_time, noise(6, 5, 11)),
    "three dimensions": (NETWORKS["three dimensions"].make, NETWORKS["three dimensions"].inputs),
    "tied embedding": (NETWORKS["tied embedding"].make, NETWORKS["tied embedding"].inputs),
    "masked attention": (NETWORKS["masked attention"].make, NETWORKS["masked attention"].inputs),
}


@pytest.fixture(scope="module", params=OWN)
def own(request):
    torch.manual_seed(0)
    make, inputs = OWN[request.param]
    return request.param, *quantized(make(), inputs)


def test_every_kind_of_layer_answers_as_the_evaluator(own, tmp_path):
    name, network, inputs = own
    exported = program(network)
    expected = network.run_in_float(inputs).numpy()

    written = write_onnx(exported, tmp_path / "model.onnx", "integer")

    np.testing.assert_array_equal(run_onnx(written.path, inputs.numpy(), batch_size=4), expected)
    assert first_difference(exported, written.path, inputs.numpy()) is None
    assert not unused(written.path)
    assert any("transposed convolutions: 6, 7" in remark for remark in written.remarks) == (name == "convolutions")

    written = write_onnx(exported, tmp_path / "model.onnx", "qdq")

    assert relative(run_onnx(written.path, inputs.numpy(), written.session_options), expected) < 1e-5
    assert not unused(written.path) and not written.remarks


@pytest.mark.parametrize("own", ["convolutions", "over time", "tied embedding"], indirect=True)
@pytest.mark.parametrize("precision", [Precision(4, 32), Precision(32, 6), Precision(16, 16)], ids=str)
def test_what_is_no_integer_of_8_bits_is_computed_in_float(own, precision, tmp_path):
    _, network, inputs = own
    exported = program(network, BitAllocation(dict.fromkeys(network.workload.layer_names, precision)))
    expected = network.run_in_float(inputs).numpy()
    for style in STYLES:
        written = write_onnx(exported, tmp_path / "model.onnx", style)
        # A value near the middle between two of 65,536 codes may go to the other one.
        assert relative(run_onnx(written.path, inputs.numpy(), written.session_options), expected) < 2e-5
        assert any(" in float" in remark for remark in written.remarks)


def test_one_layer_may_stay_in_float(digits, tmp_path):
    network, inputs = digits
    allocation = BitAllocation({**mixed(network.workload.layer_names), "depthwise": Precision(32, 32)})
    exported = program(network, allocation)
    written = write_onnx(exported, tmp_path / "model.onnx")
    found = run_onnx(written.path, inputs.numpy())
    assert (found.argmax(1) == network.run_in_float(inputs).numpy().argmax(1)).mean() >= 0.99
    assert written.remarks == ("Layers depthwise stay in float, as the allocation has them at 32 bits.",)
    assert written.weight_bytes == exported.weight_bytes


@pytest.mark.parametrize("own", ["tied embedding"], indirect=True)
def test_weights_that_layers_share_are_stored_once(own, tmp_path):
    _, network, inputs = own
    uniform = network.workload.uniform(5)
    written = write_onnx(program(network, uniform), tmp_path / "model.onnx")
    assert written.weight_bytes == (20 * 6 + 4) // 8 * 5 + (6 * 6 + 4) // 8 * 5
    np.testing.assert_array_equal(run_onnx(written.path, inputs.numpy()), network.run_in_float(inputs).numpy())


def test_a_channel_may_hold_the_integer_that_its_width_lacks(images, tmp_path):
    network, inputs = images
    exported = program(network, network.workload.uniform(4))
    mirrored = exported.layers["0"].integers.reshape(4, -1).max(1) == 8
    assert mirrored.any() and not mirrored.all()
    expected = network.run_in_float(inputs).numpy()
    for style in STYLES:
        for storage in STORAGES:
            written = write_onnx(exported, tmp_path / "model.onnx", style, storage)
            assert relative(run_onnx(written.path, inputs.numpy(), written.session_options), expected) < 1e-5
            assert relative(run_onnx(written.path, inputs.numpy()), expected) < 2e-2


def test_biases_of_32_bits_lie_on_the_grid_of_the_sums(tmp_path):
    torch.manual_seed(0)
    network, inputs = quantized(nn.Sequential(nn.Linear(6, 4)), noise(9, 6))
    exported = program(network, network.workload.uniform(3))
    layer = exported.layers["0"]
    codes = np.clip(np.rint(inputs.numpy() / layer.read.scale), layer.read.low, layer.read.high)
    units = layer.read.scale * layer.scales.astype(float)
    biases = np.rint(layer.bias / units)
    assert np.abs(biases * units - layer.bias).max() > 1e-3  # at 3 bits they are coarse
    expected = (codes @ layer.integers.T.astype(float) + biases) * units
    for style in STYLES:
        written = write_onnx(exported, tmp_path / "model.onnx", style, bias="int32")
        assert relative(run_onnx(written.path, inputs.numpy(), written.session_options), expected) < 1e-5
        assert any(tensor.data_type == onnx.TensorProto.INT32 for tensor in initializers(written.path).values())


def test_a_batch_size_of_the_network_is_kept(tmp_path):
    odd = NETWORKS["one batch size"]
    network, inputs = quantized(odd.make(), odd.inputs)
    exported = program(network)
    many = torch.cat([inputs, inputs[:2] * 0.5])
    expected = np.concatenate([network.run_in_float(batch).numpy() for batch in many.split(5)])
    for style in STYLES:
        written = write_onnx(exported, tmp_path / "model.onnx", style)
        assert relative(run_onnx(written.path, many.numpy(), written.session_options), expected) < 1e-5
        assert "It takes batches of 5 samples only." in written.remarks
        assert first_difference(exported, written.path, inputs[:3].numpy()) is None


@pytest.mark.parametrize("style", STYLES)
def test_the_first_difference_is_found(digits, style, tmp_path):
    network, inputs = digits
    exported = program(network)
    written = write_onnx(exported, tmp_path / "model.onnx", style, "int8")
    model = onnx.load(written.path)
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == "depthwise.weight")
    turned = onnx.numpy_helper.to_array(weights)[::-1].copy()
    weights.CopyFrom(onnx.numpy_helper.from_array(turned, weights.name))
    onnx.save(model, tmp_path / "wrong.onnx")

    assert first_difference(exported, tmp_path / "wrong.onnx", inputs[:20].numpy()) == "depthwise"


def test_qonnx_has_a_quant_node_for_all_that_is_rounded(digits, tmp_path):
    network, _ = digits
    exported = program(network)
    written = write_qonnx(exported, tmp_path / "model.onnx")

    model = onnx.load(written.path)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quants = {node.name: node for node in model.graph.node if node.op_type == "Quant"}
    for name, layer in exported.layers.items():
        for node, bits, signed in (
            (quants[f"{name}/reads"], layer.precision.activation_bits, layer.read.low < 0),
            (quants[f"{name}.quant"], layer.precision.weight_bits, True),
        ):
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            assert attributes == {"signed": int(signed), "narrow": 0, "rounding_mode": b"ROUND"}
            assert node.domain == "qonnx.custom_op.general" and constants[node.input[3]] == bits
        real, scale = (constants[value] for value in quants[f"{name}.quant"].input[:2])
        integers = np.rint(real / scale)
        np.testing.assert_allclose(integers, real / scale, atol=1e-4)
        assert integers.min() >= -(2 ** (layer.precision.weight_bits - 1))
        assert integers.max() < 2 ** (layer.precision.weight_bits - 1)
        mirrored = layer.integers.reshape(len(layer.scales), -1).max(1) == 2 ** (layer.precision.weight_bits - 1)
        np.testing.assert_array_equal(scale.ravel() < 0, mirrored)
    assert len(quants) == 2 * len(exported.layers) + len(exported.stored)
    assert "does not shrink" in written.remarks[0]
    # FINN and hls4ml take biases apart from convolutions, and know no mean but a pooling.
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 7 and all(len(node.input) == 2 for node in convolutions)
    operations = {node.op_type for node in model.graph.node}
    assert "GlobalAveragePool" in operations and "ReduceMean" not in operations


@pytest.mark.skipif(importlib.util.find_spec("qonnx") is None, reason="qonnx is not installed beside this package")
def test_qonnx_is_executed(digits, tmp_path):
    network, inputs = digits
    written = write_qonnx(program(network), tmp_path / "model.onnx")
    found = run_qonnx(written.path, inputs[:70].numpy(), batch_size=50)
    assert (found.argmax(1) == network.run_in_float(inputs[:70]).numpy().argmax(1)).mean() >= 0.99


def test_nothing_is_printed(tmp_path, capfd, caplog, recwarn):
    network, _ = quantized(nn.Sequential(nn.Linear(4, 3)), noise(3, 4))
    exported = program(network)
    capfd.readouterr()
    recwarn.clear()
    caplog.clear()
    written = write_onnx(exported, tmp_path / "model.onnx")
    run_onnx(written.path, noise(3, 4).numpy())
    assert tuple(capfd.readouterr()) == ("", "") and not recwarn.list
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "qdp"}, "style of an ONNX file is 'qdp'; did you mean 'qdq'"),
        ({"storage": "int4"}, "storage of an ONNX file is 'int4'; did you mean 'int8'"),
        ({"bias": "int16"}, "bias of an ONNX file is 'int16'; did you mean 'int32'"),
        ({"opset": 17}, "opset of an ONNX file is 17; the installed onnx writes 21 to"),
    ],
)
def test_options_that_do_not_exist(digits, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_onnx(program(digits[0]), tmp_path / "model.onnx", **options)


def test_a_missing_package_is_named(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"need onnx and onnxscript; install with: pip install 'amed-env\[export\]'"):
        write_onnx(program(digits[0]), tmp_path / "model.onnx")


def test_what_the_exporter_cannot_write_is_said(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no operator for aten::special\nand more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    network, _ = quantized(nn.Sequential(nn.Linear(5, 3)), noise(3, 5))
    with pytest.raises(NetworkError, match=r"exporter fails .*RuntimeError: no operator for aten::special\)"):
        write_onnx(program(network), tmp_path / "model.onnx")
