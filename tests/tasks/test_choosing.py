"""What layers choose from: what the device allows and the user leaves."""

import json
import sys

import numpy as np
import pytest
from layerwise_devices import DeclaringSets, RaisingSets, WholeSets
from small_task import FormulaEvaluator, formula_task

from amed_env import BitAllocation, Layer, Task, Workload
from amed_env.errors import AllocationError, BackendError, UnsupportedLayerError, UnsupportedPrecisionError
from amed_env.hardware import Capabilities, Cost, HardwareBackend, evaluate_cost, isolated, load_device
from amed_env.hardware.choices import layer_precisions, reference_allocation
from amed_env.problem.allocation import Precision, at_least
from amed_env.problem.objective import parse_budgets
from amed_env.problem.pins import parse_pins
from amed_env.problem.ties import Ties
from amed_env.tasks.choosing import Wishes

ALL_TIED = [(b, b) for b in (2, 3, 4, 5, 8, 16)]
GRID = [(w, a) for w in (2, 3, 4, 8) for a in (2, 3, 4, 8)]


def choices_of(allowed, bits=None, separate=False, activation_bits=None, known=None):
    wishes = Wishes.of(["a"], bits, separate, activation_bits, None, known)
    return [tuple(precision) for precision in wishes.choices([Precision(*pair) for pair in allowed])]


@pytest.mark.parametrize(
    ("allowed", "options", "expected"),
    [
        # Both operands run at every width: they are tied, at the default widths.
        (GRID, {}, [(2, 2), (3, 3), (4, 4), (8, 8)]),
        (ALL_TIED, {}, [(2, 2), (3, 3), (4, 4), (8, 8)]),
        ([(w, a) for w in range(1, 9) for a in range(2, 9)], {}, [(2, 2), (3, 3), (4, 4), (8, 8)]),
        # The default widths leave no choice: everything that there is.
        ([(5, 5), (6, 6), (8, 8)], {}, [(5, 5), (6, 6), (8, 8)]),
        ([(8, 8), (32, 32)], {}, [(8, 8), (32, 32)]),
        ([(8, 8)], {}, [(8, 8)]),
        # One that only has 8-bit weights is at 8 bits, whatever its activations could do.
        ([(8, 2), (8, 4), (8, 8)], {}, [(8, 8)]),
        # Weights that do not run with activations of their own width: the pairs that there are.
        ([(2, 8), (4, 8), (8, 8)], {}, [(2, 8), (4, 8), (8, 8)]),
        ([(4, 8), (8, 8), (8, 16)], {}, [(4, 8), (8, 8), (8, 16)]),
        ([(2, 16), (4, 8), (8, 8)], {}, [(2, 16), (4, 8), (8, 8)]),
        # What the user leaves.
        (GRID, {"bits": (2, 8)}, [(2, 2), (8, 8)]),
        (GRID, {"bits": (2, 8), "separate": True}, [(2, 2), (2, 8), (8, 2), (8, 8)]),
        (GRID, {"bits": (2, 8), "activation_bits": 4}, [(2, 4), (8, 4)]),
        (GRID, {"activation_bits": 8}, [(2, 8), (3, 8), (4, 8), (8, 8)]),
        ([(4, 8), (8, 8), (8, 16)], {"bits": (4, 8)}, [(4, 8), (8, 8)]),
        ([(4, 8), (8, 8), (8, 16)], {"separate": True, "bits": (4, 8, 16)}, [(4, 8), (8, 8), (8, 16)]),
        ([(4, 8), (8, 8), (8, 16)], {"activation_bits": 16}, [(8, 16)]),
        ([(4, 8), (8, 8), (8, 16)], {"known": ((4, 4), (8, 8))}, [(8, 8)]),
        ([(4, 8)], {"bits": (2, 4)}, []),
    ],
)
def test_the_choices_of_a_layer(allowed, options, expected):
    if "known" in options:
        options = {"known": tuple(Precision(*pair) for pair in options["known"])}
    assert choices_of(allowed, **options) == expected


@pytest.mark.parametrize(
    ("wanted", "choices", "expected"),
    [
        ((4, 4), [(2, 2), (4, 4), (8, 8)], (4, 4)),
        ((4, 4), [(2, 2), (8, 8)], (8, 8)),
        ((4, 4), [(2, 2)], (2, 2)),
        ((4, 4), [(4, 8), (8, 8), (8, 16)], (4, 8)),
        ((8, 8), [(4, 8), (4, 16), (2, 2)], (4, 8)),
        ((8, 8), [(8, 2), (8, 4)], (8, 4)),
        ((16, 16), [(4, 8), (8, 8), (8, 16)], (8, 16)),
    ],
)
def test_what_stands_for_a_precision_that_is_not_to_be_had(wanted, choices, expected):
    assert at_least(Precision(*wanted), [Precision(*pair) for pair in choices]) == expected


SETS = [[(8, 8)], [(4, 8), (8, 8)], [(2, 2), (4, 4), (8, 8)], [(4, 8), (8, 16)]]


@pytest.mark.parametrize("kind", [RaisingSets, DeclaringSets, WholeSets])
def test_each_layer_has_its_own_choices(kind):
    task = formula_task(4, device=kind(SETS), bits=None)
    assert [list(of_layer) for of_layer in task.space.layer_choices] == [sorted(pairs) for pairs in SETS]
    assert task.precisions == tuple(sorted({Precision(*p) for pairs in SETS for p in pairs}))
    assert task.free_bits == (2, 4, 8) and task.bits == (2, 4, 8, 16)
    for row, pairs in enumerate(SETS):
        assert [p for p, may in zip(task.precisions, task.choosable[row], strict=True) if may] == sorted(pairs)
    for values in task.costs.values():
        assert np.isfinite(values).all()
    assert list(task.uniform(4).values()) == [(8, 8), (4, 8), (4, 4), (4, 8)]
    assert list(task.uniform(8).values()) == [(8, 8), (8, 8), (8, 8), (8, 16)]
    assert {bits: a.key() for bits, a in task.space.uniform_widths().items()} == {
        2: "8/8 4/8 2/2 4/8",
        4: "8/8 4/8 4/4 4/8",
        8: "8/8 8/8 8/8 8/16",
    }
    start = task.allocation(task.space.start_choices())
    assert start == task.uniform(8)
    with pytest.raises(AllocationError, match="'layer0' has w4a8, which is none of this task's choices for it: w8a8"):
        task.choices(start.replace({"layer0": (4, 8)}))
    # The reference is 8 bit where the device has it.
    assert reference_allocation(task.backend, task.workload) == start
    assert task.device_costs.reference_text == "uniform 8 bit, as far as the device runs it"
    assert task.reference_cost["luts"] == task.cost(start)["luts"]
    assert task.with_budget({"luts": 0.9}).limits["luts"] == 0.9 * task.cost(start)["luts"]


def test_a_device_that_raises_is_asked_once_for_each_layer_and_pair():
    device = RaisingSets(SETS)
    formula_task(4, device=device, bits=(4, 8))
    assert len(device.asked) == len(set(device.asked)) == 4 * 4  # pairs of both widths


def test_a_device_that_runs_everything_is_asked_about_the_usual_widths_only():
    class Counting(HardwareBackend):
        def __init__(self):
            self.asked = []

        def layer_cost(self, layer, precision):
            self.asked.append((layer.name, tuple(precision)))
            return {"latency_ms": 1.0}

    device = Counting()
    assert formula_task(3, device=device, bits=None).free_bits == (2, 3, 4, 8)
    assert set(device.asked) == {(f"layer{i}", (bits, bits)) for i in range(3) for bits in (2, 3, 4, 8)}
    assert len(device.asked) == 12


class RefusingWhole(HardwareBackend):
    """Costs of whole networks only, some of which it refuses; counts the questions."""

    bits = (4, 8)

    def __init__(self, refused, known=None):
        self.refused, self.known, self.asked = refused, known, []

    def capabilities(self):
        return Capabilities.same_for_all_kinds(self.bits, self.metrics, additive=False)

    def evaluate(self, workload, allocation):
        self.asked.append(allocation)
        for name, precision in allocation.items():
            if self.known is not None and name not in self.known:
                raise UnsupportedLayerError(f"{name} is not among the layers that were measured")
            if (name, tuple(precision)) in self.refused:
                raise UnsupportedPrecisionError(f"{name} cannot run at {precision}")
        return Cost(self.name, {"latency_ms": max(p.weight_bits for p in allocation.values())})


@pytest.mark.parametrize(
    ("refused", "choices", "questions"),
    [
        (set(), [[(4, 4), (8, 8)]] * 3, 2),
        ({("layer1", (4, 4))}, [[(4, 4), (8, 8)], [(8, 8)], [(4, 4), (8, 8)]], 4 + 3),
        # Nothing is accepted as a whole: each layer is asked about alone.
        (
            {(f"layer{i % 3}", pair) for i, pair in enumerate([(4, 4), (4, 8), (8, 4), (8, 8)])},
            [[(4, 8), (8, 4)], [(4, 4), (8, 4), (8, 8)], [(4, 4), (4, 8), (8, 8)]],
            4 + 4 * 3,
        ),
    ],
)
def test_a_device_of_whole_networks_is_asked_no_more_than_needed(refused, choices, questions):
    device = RefusingWhole(refused)
    task = formula_task(3, device=device, bits=(4, 8), separate=len(choices[0]) > 2)
    assert len(device.asked) == questions
    for row, of_layer in enumerate(choices):
        allowed = {p for p, runs in zip(task.precisions, task.space.runnable[row], strict=True) if runs}
        assert set(of_layer) <= allowed and not {(f"layer{row}", tuple(p)) for p in allowed} & refused


def test_a_layer_that_the_device_does_not_know_is_its_own_error():
    with pytest.raises(UnsupportedLayerError, match="layer2 is not among the layers that were measured"):
        formula_task(3, device=RefusingWhole(set(), {"layer0", "layer1"}), bits=(4, 8))


def test_a_failure_is_no_refusal():
    class Broken(RaisingSets):
        def layer_cost(self, layer, precision):
            raise RuntimeError("no license")

    task = formula_task(4, device=Broken(SETS), bits=(4, 8))
    assert task.choosable.all()
    with pytest.raises(BackendError, match="no license"):
        task.cost(task.uniform(8))


class TwoKinds(HardwareBackend):
    """Depthwise layers at 8 bits only; others with activations of 8 bits."""

    name = "two-kinds"

    def capabilities(self):
        weights = {"conv": (2, 4, 8), "depthwise": (8,), "linear": (4, 8)}
        return Capabilities(weights, dict.fromkeys(weights, (8,)), dict(self.metrics))

    def layer_cost(self, layer, precision):
        return {"latency_ms": layer.macs * precision.weight_bits * 1e-6}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": (2, 4)}, r"'layer0' \(conv\).* it supports w2a8, w4a8, w8a8, and widths 2, 4 leave none"),
        ({"bits": (2, 4), "activation_bits": 8}, r"'layer1' \(depthwise\).* it supports w8a8, and widths 2, 4 and act"),
        ({"activation_bits": 4}, r"'layer0'.* it supports w2a8, .*activations of 4 bits leave none of these"),
        ({"pins": {"layer1": 4}}, r"'layer1' \(depthwise\) at w4a4, to which it is pinned; it supports w8a8\."),
        ({"bits": (3, 8)}, r"'layer0' \(conv\) with 3-bit weights; it supports 2, 4, 8 bits"),
    ],
)
def test_a_layer_that_is_left_with_nothing_is_named(options, message):
    with pytest.raises(UnsupportedPrecisionError, match=message):
        Task("formula", FormulaEvaluator(3), TwoKinds(), **options)


def test_pins_and_widths_narrow_what_the_device_allows():
    task = Task("formula", FormulaEvaluator(3), TwoKinds(), (4, 8), pins={"first": "w2a8"})
    assert [list(of_layer) for of_layer in task.space.layer_choices] == [[(2, 8)], [(8, 8)], [(4, 8), (8, 8)]]
    assert task.with_device(load_device("bitfusion")).space.layer_choices[1:] == (((4, 4), (8, 8)),) * 2
    kind = Task("formula", FormulaEvaluator(2), TwoKinds())
    assert kind.with_pins({"first": "8"}).space.layer_choices == (((8, 8),), ((8, 8),))


def test_a_kind_that_the_device_lacks_is_named():
    class NoLinear(TwoKinds):
        def capabilities(self):
            return Capabilities.same_for_kinds(("conv", "depthwise"), (8,), (8,), self.metrics)

    with pytest.raises(UnsupportedPrecisionError, match="no support for kind 'linear'"):
        Task("formula", FormulaEvaluator(3), NoLinear())


def test_a_pin_is_written_as_a_pair_too():
    assert parse_pins(["first=w4a8"], ("a", "b")) == {"a": (4, 8)}


def test_tied_layers_have_what_all_of_them_can_run_at():
    evaluator = FormulaEvaluator(3)
    network = Workload("tied", (*evaluator.workload.layers, Layer("layer3", "conv", m=16, n=8, k=9)))
    evaluator.ties = Ties.of(network, [["layer0", "layer3"]])
    evaluator.workload = evaluator.ties.reduced()
    sets = [[(4, 4), (8, 8)], [(8, 8)], [(2, 2), (8, 8)], [(2, 2), (8, 8)]]
    task = Task("tied", evaluator, RaisingSets(sets))
    assert [list(of_layer) for of_layer in task.space.layer_choices] == [[(8, 8)], [(8, 8)], [(2, 2), (8, 8)]]
    with pytest.raises(UnsupportedPrecisionError, match=r"'layer0\+layer3' \(conv\)"):
        Task("tied", evaluator, RaisingSets([*sets[:3], [(2, 2)]]))


def test_a_device_in_a_process_of_its_own_has_the_same_choices():
    workload = FormulaEvaluator(4).workload
    precisions = tuple(sorted({Precision(*pair) for pairs in SETS for pair in pairs}))
    for kind in (RaisingSets, DeclaringSets):
        device = isolated(kind(SETS), timeout_s=60.0)
        try:
            assert layer_precisions(device, workload, precisions) == tuple(
                tuple(sorted(Precision(*pair) for pair in pairs)) for pairs in SETS
            )
        finally:
            device.close()


@pytest.mark.parametrize("answer", [[], [[(8, 8)]] * 5, [8, 8, 8, 8], None])
def test_an_answer_that_makes_no_sense_is_the_devices_fault(answer):
    class Odd(DeclaringSets):
        def allowed_precisions(self, workload, precisions):
            return answer

    with pytest.raises(BackendError, match=r"allowed_precisions\(\)"):
        formula_task(4, device=Odd(SETS))


def test_a_device_says_no_more_than_its_capabilities():
    class Boasting(TwoKinds):
        def allowed_precisions(self, workload, precisions):
            return [precisions] * len(workload)

    task = Task("formula", FormulaEvaluator(3), Boasting())
    assert task.space.layer_choices[1] == ((8, 8),)


DEVICE = """\
format: amed-device/1
name: mine
description: a processor
kind: processor
processor: {clock_mhz: 100, source: made up}
throughput:
  weight_bits: [2, 4, 8]
  activation_bits: [8, 16]
  macs_per_cycle: {8: {16: 1.0}}
  source: made up
"""


def file_device(tmp_path, **further):
    lines = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in further.items())
    (tmp_path / "mine.yaml").write_text(DEVICE + lines)
    return load_device(tmp_path / "mine.yaml")


def test_a_device_file_names_pairs_by_kind_and_layers(tmp_path):
    pairs = {"conv": ["w4a8", [8, 8], "8/16"], "depthwise": 8}
    device = file_device(tmp_path, pairs=pairs, layers={"first": "w8a8", "layer3": ["w4a8", "w8a8"], "other": 8})
    task = formula_task(4, device=device, bits=None)
    assert [list(map(str, of_layer)) for of_layer in task.space.layer_choices] == [
        ["w8a8"],
        ["w8a8"],
        ["w2a8", "w2a16", "w4a8", "w4a16", "w8a8", "w8a16"],
        ["w4a8", "w8a8"],
    ]
    base = task.uniform(8)
    with pytest.raises(UnsupportedPrecisionError, match=r"'layer0' \(conv\) at w4a8; it supports w8a8 there"):
        evaluate_cost(device, task.workload, base.replace({"layer0": (4, 8)}))
    with pytest.raises(UnsupportedPrecisionError, match="it supports w4a8, w8a8, w8a16"):
        evaluate_cost(device, task.workload, base.replace({"layer3": (2, 8)}))
    assert file_device(tmp_path, pairs=["w2a8", 8]).capabilities().precisions("linear") == ((2, 8), (8, 8))


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"pairs": {"conv": ["w3a8"]}}, "pair w3a8 of kind 'conv' has 3-bit weights, which are not declared"),
        ({"pairs": {"conv": ["w8a8", 8]}}, "a pair is repeated"),
        ({"pairs": {"convolution": [8]}}, "convolution"),
        ({"pairs": {"conv": []}}, "line 11.*at least 1"),
        ({"layers": {"first": "eight"}}, "'eight' is no width; write 8, or 8/4 .or w8a4."),
        ({"layers": {"first": [[8, 8, 8]]}}, "3 widths"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, further, message):
    with pytest.raises(Exception, match=message) as caught:
        file_device(tmp_path, **further)
    assert caught.value.exit_code == 2


PROGRAM = """\
import json, sys
request = json.load(sys.stdin)
layers = [{"name": i["name"], "latency_ms": i["m"] * i["n"] * i["w_bits"] * 1e-6} for i in request["layers"]]
total = {"latency_ms": sum(layer["latency_ms"] for layer in layers)}
print(json.dumps({"format": "amed-answer/1", "total": total, "layers": layers}))
"""


@pytest.mark.parametrize("additive", [True, False])
def test_a_program_has_pairs_by_kind_and_layer(tmp_path, additive):
    (tmp_path / "simulator.py").write_text(PROGRAM)
    config = {
        "format": "amed-command/1",
        "name": "mine",
        "command": [sys.executable, "simulator.py"],
        "additive": additive,
        "pairs": {"conv": [[4, 8], [8, 8]], "depthwise": [[8, 8]], "linear": ["w2a8", "w8a8"]},
        "layers": {"last": [[8, 8]]},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    device = load_device(tmp_path / "mine.yaml")
    assert not device.capabilities().precisions("matmul")
    task = Task("formula", FormulaEvaluator(4), device, budgets=parse_budgets({"latency": 0.9}))
    assert [list(map(str, of_layer)) for of_layer in task.space.layer_choices] == [
        ["w4a8", "w8a8"],
        ["w8a8"],
        ["w2a8", "w8a8"],
        ["w8a8"],
    ]
    with pytest.raises(UnsupportedPrecisionError, match="layer3"):
        evaluate_cost(device, task.workload, task.uniform(8).replace({"layer3": (4, 8)}))


def test_a_program_without_pairs_is_as_before(tmp_path):
    (tmp_path / "mine.yaml").write_text("format: amed-command/1\nname: mine\ncommand: x\nkinds: [conv]\nbits: [4, 8]\n")
    assert load_device(tmp_path / "mine.yaml").capabilities().precisions("conv") == ((4, 4), (4, 8), (8, 4), (8, 8))


def test_tables_have_other_precisions_for_each_layer(tmp_path):
    path = tmp_path / "mixed.csv"
    path.write_text("layer,w_bits,a_bits,latency_ms\nlayer0,8,8,0.02\nlayer1,4,8,0.02\nlayer1,8,8,0.04\n")
    task = Task("formula", FormulaEvaluator(2), load_device(path), budgets=parse_budgets({"latency": 0.7}))
    assert task.space.layer_choices == (((8, 8),), ((4, 8), (8, 8)))
    assert task.limits["latency_ms"] == pytest.approx(0.042)
    assert task.costs["latency_ms"][task.choosable].tolist() == [0.02, 0.02, 0.04]
    with pytest.raises(UnsupportedPrecisionError, match=r"'layer0' \(conv\) at w4a8; it supports w8a8 there"):
        task.cost(BitAllocation({"layer0": (4, 8), "layer1": (8, 8)}))
