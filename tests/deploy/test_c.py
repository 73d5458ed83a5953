"""Exports to C: compiled here, and equal to the evaluator to the last bit; what C cannot hold is refused by name."""

import dataclasses
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import amed_env
from amed_env import BitAllocation, ExportOptions, make_task
from amed_env.deploy.c.building import MICROCONTROLLER, MICROCONTROLLER_FLAGS, build, compiler, run
from amed_env.deploy.c.difference import first_difference
from amed_env.deploy.c.lowering import lower
from amed_env.deploy.c.writing import write_c
from amed_env.deploy.program import program_of
from amed_env.errors import DisagreementError, ExportError, UnknownNameError
from amed_env.problem import memory_plan
from amed_env.tracing.execution.steps import results_of

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def digits():
    return make_task("digits-cnn", recipe="nearest", threads=1)


def mixed(workload, seed=0):
    numbers = np.random.default_rng(seed)
    drawn = numbers.integers(2, 9, (len(workload), 2))
    return BitAllocation({layer.name: tuple(map(int, pair)) for layer, pair in zip(workload, drawn, strict=True)})


@pytest.mark.parametrize("allocation", ["odd", "uniform 4", "uniform 2"])
def test_the_shipped_network_is_bit_equal_on_all_test_samples(digits, tmp_path, allocation):
    chosen = mixed(digits.workload) if allocation == "odd" else digits.uniform(int(allocation[-1]))
    found = amed_env.export(digits, chosen, tmp_path)
    (agreement,) = found.agreements
    assert agreement.samples == 500 and agreement.bit_equal == agreement.same_answer == 1
    quality = digits.evaluator.evaluate(chosen, "test")
    assert agreement.metrics["top-1"] == (quality.accuracy, quality.accuracy)
    # Weights take the bits that they were promised, rounded up to bytes in each layer.
    bits = [layer.weight_elements * chosen[layer.name].weight_bits for layer in digits.workload]
    assert found.ideal_bytes == sum(bits) / 8
    assert found.weight_bytes == sum(-(-count // 8) for count in bits)
    # What a search counts is what is there: memory to the byte, flash but for marks of single channels.
    counted = digits.cost(chosen).metrics
    assert found.ram == counted["ram_kib"] * 1024 == digits.workload.memory.bytes(chosen)
    assert 0 <= found.size - counted["flash_kib"] * 1024 <= 0.01 * found.size
    assert {path.name for path in found.files} == {"model.c", "model.h", "main.c", "Makefile"}


def test_the_makefile_builds_what_is_verified(digits, tmp_path):
    amed_env.export(digits, digits.uniform(5), tmp_path, verify=None)
    subprocess.run(["make", "-C", tmp_path], check=True, capture_output=True)
    inputs = digits.evaluator.samples("test").inputs[:7]
    found = run(tmp_path / "model", inputs.numpy(), 10)
    digits.evaluator.network.select(digits.uniform(5))
    np.testing.assert_array_equal(found, digits.evaluator.network(inputs).numpy())


def test_the_text_has_no_warnings_and_all_memory_is_static(digits, tmp_path):
    amed_env.export(digits, mixed(digits.workload), tmp_path, verify=None)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Wno-float-conversion", "-Werror"]
    subprocess.run([compiler(), *flags, "-pedantic", "-c", "-o", "/dev/null", tmp_path / "model.c"], check=True)
    text = (tmp_path / "model.c").read_text()
    assert not any(call in text for call in ("malloc", "alloca", "printf"))


@pytest.mark.skipif(shutil.which(MICROCONTROLLER) is None, reason=f"{MICROCONTROLLER} is not installed")
def test_a_microcontroller_needs_the_memory_that_is_stated(digits, tmp_path):
    found = amed_env.export(digits, mixed(digits.workload), tmp_path, verify=None)
    target = tmp_path / "model.o"
    subprocess.run([MICROCONTROLLER, *MICROCONTROLLER_FLAGS, "-c", "-o", target, tmp_path / "model.c"], check=True)
    sizes = subprocess.run(["arm-none-eabi-size", target], check=True, capture_output=True, text=True).stdout
    text, data, bss, *_ = map(int, sizes.splitlines()[1].split()[:3])
    assert data + bss == found.ram
    assert text < found.size + 6_000  # kernels


class Residual(nn.Module):
    """A shortcut that drops pixels and pads channels, as ResNets for CIFAR-10 have it."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 10, 3, stride=2, padding=1)
        self.second, self.head = nn.Conv2d(10, 10, 3, padding=1), nn.Linear(10, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = F.relu(self.second(F.relu(self.first(x))) + shortcut)
        return self.head(x.mean((2, 3)))


class Branches(nn.Module):
    """Concatenated branches, one of them pooled, and a reordering before the classifier."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(1, 2))
        self.narrow, self.mix = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 6, 3, groups=2)
        self.head = nn.Linear(6 * 9, 5)

    def forward(self, x):
        pooled = F.max_pool2d(F.relu(self.narrow(x)), 3, stride=1, padding=1)
        x = F.relu6(self.mix(torch.cat([F.relu(self.wide(x)), pooled], dim=1)))
        x = F.max_pool2d(x, 2)
        return self.head(x.flatten(1))


class Rows(nn.Module):
    """Linear layers on rows, and an addition of floats."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.last((x + self.second(x)).transpose(1, 2).mean(2))


def series():
    return nn.Sequential(
        nn.ConstantPad1d((2, 1), 0.0),
        nn.Conv1d(4, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv1d(8, 8, 5, padding=2, groups=8),
        nn.Hardtanh(-0.5, 0.7),
        nn.AvgPool1d(2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def pools():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        nn.Conv2d(5, 7, 3),
        nn.LeakyReLU(0.0),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.Flatten(),
        nn.Linear(42, 3),
    )


def images(count=40, channels=3, size=9, seed=0):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def of_series(count=40):
    return torch.randn(count, 4, 32, generator=torch.Generator().manual_seed(1))


def of_rows(count=40):
    return torch.randn(count, 7, 6, generator=torch.Generator().manual_seed(2))


NETWORKS = {
    "residual": (Residual, images),
    "branches": (Branches, images),
    "series": (series, of_series),
    "rows": (Rows, of_rows),
    "no activation": (lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(256, 2)), images),
}


def own_task(name):
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    given = inputs()
    return make_task(network=make().eval(), recipe="nearest", threads=1, calibration=given, score="squared-error")


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_ones_own_are_bit_equal_at_odd_widths(name, tmp_path):
    task = own_task(name)
    for seed in range(2):
        chosen = mixed(task.workload, seed)
        found = amed_env.export(task, chosen, tmp_path / str(seed), verify="search")
        assert found.agreements[0].bit_equal == 1, found.agreements
        # What is known of the network without its weights is what its export declares.
        assert found.ram == task.workload.memory.bytes(chosen)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("epilogue", ["float", "fixed"])
def test_packed_results_are_the_same_results(name, epilogue, tmp_path):
    task = own_task(name)
    network, chosen = task.evaluator.network, mixed(task.workload, 2)
    program = program_of(network, chosen)
    lowered = lower(network, program)
    sample = task.evaluator.samples("search").inputs[:5]

    def outputs(folder, lowered):
        how = {"scales_first": program.scales_first, "epilogue": epilogue, "bias": "float"}
        write_c(lowered, tmp_path / folder, "", **how)
        return run(build(tmp_path / folder, tmp_path / folder), sample.numpy(), lowered.output.elements)

    buffers = memory_plan.buffers_under(results_of(lowered.execution), chosen)
    narrow = frozenset(name for name, buffer in buffers.items() if buffer.bits < 8)
    plans = [memory_plan._plan(buffers, packed) for packed in (frozenset(), narrow)]
    assert narrow and plans[1].packed == narrow
    plain, packed = (outputs(str(n), dataclasses.replace(lowered, plan=plan)) for n, plan in enumerate(plans))
    np.testing.assert_array_equal(packed, plain)
    assert "bits < 8" in (tmp_path / "1" / "model.c").read_text()


def test_a_chain_at_four_bits_takes_half_the_memory_for_results(tmp_path):
    convolutions = [layer for _ in range(3) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *convolutions, nn.Flatten(), nn.Linear(512, 2))
    task = make_task(
        network=network.eval(), recipe="nearest", threads=1, calibration=images(size=8), score="squared-error"
    )
    row = 512  # weights of one output of the last layer
    for bits in (8, 4, 2):
        found = amed_env.export(task, task.uniform(bits), tmp_path / str(bits), verify="search")
        assert found.ram == 2 * 8 * 8 * 8 * bits // 8 + row
        assert found.agreements[0].bit_equal == 1


@pytest.mark.parametrize("bias", ["float", "int32"])
def test_fixed_point_differs_by_roundings_alone(digits, tmp_path, bias):
    chosen = digits.uniform(8)
    found = amed_env.export(digits, chosen, tmp_path, options=ExportOptions(epilogue="fixed", bias=bias))
    assert found.agreements[0].same_answer >= 0.99
    # A value in the middle between two codes goes up, and not to the even one: single codes differ.
    assert found.agreements[0].largest_difference < (0.05 if bias == "float" else 0.5)


def test_the_first_layer_whose_codes_differ_is_named(digits):
    network = digits.evaluator.network
    chosen = digits.uniform(6)
    program = program_of(network, chosen)
    lowered = lower(network, program)
    sample = digits.evaluator.samples("test").inputs[:1]
    how = {"scales_first": program.scales_first, "epilogue": "float", "bias": "float"}
    assert first_difference(network, lowered, sample, **how) is None
    layer = program.layers["pointwise"]
    object.__setattr__(layer, "integers", np.roll(layer.integers, 1, axis=0))
    assert "layer 'pointwise'" in first_difference(network, lowered, sample, **how)


def test_an_export_that_answers_otherwise_is_an_error(digits, tmp_path, monkeypatch):
    from amed_env.deploy.c import writing

    monkeypatch.setattr(writing, "mirrored_channels", lambda integers, bits: np.zeros(len(integers), bool))
    monkeypatch.setattr(writing, "unsigned_codes", lambda codes, bits: ((codes + 1).astype(np.uint8) % 2**bits, None))
    with pytest.raises(
        DisagreementError, match=r"of 20 answers are equal, expected 99 %. First difference: layer 'stem'"
    ):
        amed_env.export(digits, digits.uniform(4), tmp_path, verify=20)


class Looked(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.table(x).mean(1))


@pytest.mark.parametrize(
    ("network", "inputs", "what"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 3)), images, "gelu"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3)), images, "'0', a TransposedConvolution"),
        (
            Looked,
            lambda: torch.randint(0, 9, (20, 5), generator=torch.Generator().manual_seed(0)),
            "'table' (it looks rows up)",
        ),
    ],
)
def test_what_c_cannot_hold_is_named(network, inputs, what, tmp_path):
    torch.manual_seed(0)
    task = make_task(network=network().eval(), recipe="nearest", threads=1, calibration=inputs(), score="squared-error")
    with pytest.raises(ExportError, match="C cannot hold") as refused:
        amed_env.export(task, task.uniform(4), tmp_path)
    assert what in str(refused.value) and "onnx" in str(refused.value)


def test_widths_without_integers_are_refused(digits, tmp_path):
    with pytest.raises(ExportError, match=r"'stem' has w32a32 \(and 7 more\)"):
        amed_env.export(digits, digits.uniform(32), tmp_path)
    with pytest.raises(UnknownNameError, match="onxx"):
        amed_env.export(digits, digits.uniform(4), tmp_path, format="onxx")


def test_a_folder_that_cannot_be_made_is_named(digits, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot make the folder .*file"):
        amed_env.export(digits, digits.uniform(4), tmp_path / "file" / "c")


def test_names_of_networks_end_no_comment(digits, tmp_path):
    program = program_of(digits.evaluator.network, digits.uniform(4))
    write_c(lower(digits.evaluator.network, program), tmp_path, "evil */ int x; /* \n#é", scales_first=True)
    build(tmp_path, tmp_path)
    assert "evil * / int x; / * ?#?" in (tmp_path / "model.h").read_text()
