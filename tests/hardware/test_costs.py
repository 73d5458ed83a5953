"""What the package accepts from a backend that somebody else wrote."""

from typing import ClassVar

import numpy as np
import pytest
from hardware_samples import SMALL

from amed_env import BitAllocation, Precision
from amed_env.errors import AllocationError, BackendError, DeviceError, InputError, UnsupportedPrecisionError
from amed_env.hardware import (
    Capabilities,
    Cost,
    CostTable,
    HardwareBackend,
    LayerCost,
    cost_table,
    evaluate_cost,
)
from amed_env.hardware.costs import lower_bounds

EIGHT = SMALL.uniform(8)


class Plain(HardwareBackend):
    """The least that a device can be."""

    name = "plain"
    bits = (2, 4, 8)

    def layer_cost(self, layer, precision):
        return {"latency_ms": layer.macs * precision.weight_bits * 1e-9}


def answering(value):
    """A device whose layers all cost the given value."""

    class Answering(Plain):
        def layer_cost(self, layer, precision):
            return {"latency_ms": value}

    return Answering()


def test_the_least_device_gets_totals_breakdown_and_common_metrics():
    cost = evaluate_cost(Plain(), SMALL, SMALL.uniform(4, 8))
    assert cost.device == "plain"
    assert cost["latency_ms"] == pytest.approx(SMALL.macs * 4e-9)
    assert cost["weight_kib"] == SMALL.weight_kib(SMALL.uniform(4))
    assert cost["bops"] == SMALL.macs * 4 * 8
    assert [layer.name for layer in cost.layers] == list(SMALL.layer_names)
    assert sum(layer.metrics["bops"] for layer in cost.layers) == cost["bops"]


def test_a_metric_that_a_device_counts_itself_has_no_common_bound():
    class Compresses(Plain):
        metrics: ClassVar = {"latency_ms": "ms", "flash_kib": "KiB"}

        def capabilities(self):
            return Capabilities.same_for_all_kinds(self.bits, self.metrics, additive=False)

        def evaluate(self, workload, allocation):
            return Cost(self.name, {"latency_ms": 1.0, "flash_kib": 0.01})

    bounds = lower_bounds(Compresses(), SMALL, [Precision(4, 4), Precision(8, 8)])
    assert set(bounds) == {"weight_kib", "bops"}


def test_metrics_of_the_device_win_over_the_common_ones():
    class Packs(Plain):
        metrics: ClassVar = {"latency_ms": "ms", "weight_kib": "KiB"}

        def layer_cost(self, layer, precision):
            return {"latency_ms": 1, "weight_kib": 3}

    assert evaluate_cost(Packs(), SMALL, EIGHT)["weight_kib"] == 3 * len(SMALL)
    assert cost_table(Packs(), SMALL, [8], [8]).metrics["weight_kib"].tolist() == [[[3.0]]] * len(SMALL)


def test_a_table_is_built_from_single_layers():
    table = cost_table(Plain(), SMALL, (2, 8), (4,))
    mixed = BitAllocation({name: (2 if i % 2 else 8, 4) for i, name in enumerate(SMALL.layer_names)})
    assert table.totals(mixed) == dict(evaluate_cost(Plain(), SMALL, mixed).metrics)


def test_a_table_is_built_from_whole_evaluations():
    class Whole(HardwareBackend):
        name = "whole"

        def evaluate(self, workload, allocation):
            layers = [
                LayerCost(layer.name, allocation[layer.name], {"latency_ms": float(allocation[layer.name][0])})
                for layer in workload
            ]
            return Cost("whole", {"latency_ms": sum(layer.metrics["latency_ms"] for layer in layers)}, tuple(layers))

    table = cost_table(Whole(), SMALL, (2, 8), (8, 4))
    assert table.metrics["latency_ms"][3].tolist() == [[2, 2], [8, 8]]
    assert table.metrics["bops"][3].tolist() == [[SMALL.layers[3].macs * w * a for a in (8, 4)] for w in (2, 8)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, np.float32("nan"), -np.int64(3)])
def test_senseless_numbers_are_refused_by_layer_and_metric(value):
    with pytest.raises(BackendError, match=r"'plain', layer 'stem'.*'latency_ms'.*finite"):
        evaluate_cost(answering(value), SMALL, EIGHT)
    with pytest.raises(BackendError, match=r"'plain', layer 'stem'.*'latency_ms'.*finite"):
        cost_table(answering(value), SMALL, [8], [8])


@pytest.mark.parametrize("value", ["fast", None, True, 1j, [1.0], np.array([1.0])])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(BackendError, match=r"'latency_ms'.*expected a number"):
        evaluate_cost(answering(value), SMALL, EIGHT)


def test_numbers_of_numpy_and_huge_integers():
    assert evaluate_cost(answering(np.float32(2)), SMALL, EIGHT)["latency_ms"] == 2 * len(SMALL)
    assert evaluate_cost(answering(np.array(2.0)), SMALL, EIGHT)["latency_ms"] == 2 * len(SMALL)
    with pytest.raises(BackendError, match="too large"):
        evaluate_cost(answering(10**5000), SMALL, EIGHT)


def test_missing_metrics_are_named():
    class Promises(Plain):
        metrics: ClassVar = {"latency_ms": "ms", "energy_uj": "uJ"}

    with pytest.raises(BackendError, match=r"layer 'stem'.*missing: energy_uj"):
        evaluate_cost(Promises(), SMALL, EIGHT)


@pytest.mark.parametrize("raised", [ZeroDivisionError("by zero"), KeyError("x"), SystemExit(1), MemoryError()])
def test_whatever_a_backend_raises_is_wrapped(raised):
    class Broken(Plain):
        def layer_cost(self, layer, precision):
            raise raised

    pattern = rf"'plain'.*'small' with 8 layers: {type(raised).__name__}"
    with pytest.raises(BackendError, match=pattern) as caught:
        evaluate_cost(Broken(), SMALL, EIGHT)
    assert caught.value.__cause__ is raised
    with pytest.raises(BackendError, match=pattern):
        cost_table(Broken(), SMALL, [8], [8])


def test_errors_of_the_package_and_interrupts_pass_through():
    class Says(Plain):
        raised: BaseException

        def layer_cost(self, layer, precision):
            raise self.raised

    device = Says()
    for error in (DeviceError("no licence"), KeyboardInterrupt()):
        device.raised = error
        with pytest.raises(type(error)):
            evaluate_cost(device, SMALL, EIGHT)


def test_a_device_that_overrides_nothing_says_what_to_do():
    with pytest.raises(BackendError, match=r"must override layer_cost\(\)"):
        evaluate_cost(HardwareBackend(), SMALL, EIGHT)


def evaluating(function):
    class Evaluating(HardwareBackend):
        name = "odd"

        def evaluate(self, workload, allocation):
            return function(workload, allocation)

    return Evaluating()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda w, a: None, "answered NoneType, expected Cost"),
        (lambda w, a: {"latency_ms": 1}, "answered dict, expected Cost"),
        (lambda w, a: Cost("odd", None), "expected a mapping"),
        (lambda w, a: Cost("odd", {}), "missing: latency_ms"),
        (lambda w, a: Cost("odd", {"latency_ms": 1}, ({"name": "stem"},)), "no LayerCost"),
        (
            lambda w, a: Cost("odd", {"latency_ms": 1}, (LayerCost("stem", a["stem"], {"latency_ms": 1}),)),
            "has the layers stem; expected stem, block1.conv1",
        ),
        (
            lambda w, a: Cost(
                "odd", {"latency_ms": 1}, tuple(LayerCost(n, (2, 2), {"latency_ms": 1}) for n in w.layer_names)
            ),
            "layer 'stem': evaluated at",
        ),
        (
            lambda w, a: Cost("odd", {"latency_ms": 1}, tuple(LayerCost(n, a[n], {}) for n in w.layer_names)),
            "layer 'stem'.*missing: latency_ms",
        ),
    ],
)
def test_odd_answers_are_refused(answer, message):
    with pytest.raises(BackendError, match=message):
        evaluate_cost(evaluating(answer), SMALL, EIGHT)


def test_a_device_without_breakdown_has_totals_but_no_table():
    device = evaluating(lambda w, a: Cost("odd", {"latency_ms": 5.0}))
    cost = evaluate_cost(device, SMALL, EIGHT)
    assert cost["latency_ms"] == 5 and cost.layers == () and cost["bops"] == SMALL.macs * 64
    with pytest.raises(BackendError, match="no breakdown by layer"):
        cost_table(device, SMALL, [8], [8])


def test_costs_that_do_not_add_up_have_no_table():
    class Fused(Plain):
        def capabilities(self):
            return Capabilities.same_for_all_kinds((2, 4, 8), self.metrics, additive=False)

        def evaluate(self, workload, allocation):
            return Cost("fused", {"latency_ms": 1.0})

    assert evaluate_cost(Fused(), SMALL, EIGHT)["latency_ms"] == 1
    with pytest.raises(BackendError, match="do not add up"):
        cost_table(Fused(), SMALL, [8], [8])


def tabulating(**changes):
    class Tabulating(Plain):
        def table(self, workload, weight_bits, activation_bits):
            shape = (len(workload), len(weight_bits), len(activation_bits))
            parts = {
                "layers": workload.layer_names,
                "weight_bits": tuple(weight_bits),
                "activation_bits": tuple(activation_bits),
                "metrics": {"latency_ms": np.ones(shape)},
            }
            return CostTable(**{**parts, **changes})

    return Tabulating()


def with_nan():
    values = np.ones((8, 2, 1))
    values[3, 1, 0] = np.nan
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": SMALL.layer_names[::-1]}, "the table has the layers"),
        ({"weight_bits": (4, 2)}, r"weight widths \(4, 2\), expected \(2, 4\)"),
        ({"activation_bits": (4,)}, "activation widths"),
        ({"metrics": {}}, "missing in the table: latency_ms"),
        ({"metrics": {"latency_ms": np.ones((8, 2))}}, r"shape \(8, 2\), expected \(8, 2, 1\)"),
        ({"metrics": {"latency_ms": "fast"}}, "holds no numbers"),
        ({"metrics": {"latency_ms": with_nan()}}, r"layer 'depthwise' at w4a8: metric 'latency_ms' is nan"),
        ({"metrics": {"latency_ms": -np.ones((8, 2, 1))}}, "layer 'stem' at w2a8.* -1.0"),
    ],
)
def test_odd_tables_are_refused(changes, message):
    with pytest.raises(BackendError, match=message):
        cost_table(tabulating(**changes), SMALL, (2, 4), (8,))


def test_a_table_that_is_none_of_ours_is_refused():
    class Odd(Plain):
        def table(self, workload, weight_bits, activation_bits):
            return np.ones(3)

    with pytest.raises(BackendError, match="answered ndarray, expected CostTable or None"):
        cost_table(Odd(), SMALL, [8], [8])


def test_capabilities_are_enforced_before_the_device_is_asked():
    class NoDepthwise(Plain):
        def capabilities(self):
            widths = {"conv": (2, 4, 8), "linear": (8,)}
            return Capabilities(widths, widths, self.metrics)

        def layer_cost(self, layer, precision):
            raise AssertionError("it was asked")

    with pytest.raises(UnsupportedPrecisionError, match=r"'depthwise'.*no support for kind 'depthwise'"):
        evaluate_cost(NoDepthwise(), SMALL, EIGHT)
    with pytest.raises(UnsupportedPrecisionError, match=r"layer 'stem' \(conv\) with 5-bit weights"):
        evaluate_cost(NoDepthwise(), SMALL, SMALL.uniform(5))
    without = type(SMALL)("w", tuple(layer for layer in SMALL if layer.kind != "depthwise"))
    with pytest.raises(UnsupportedPrecisionError, match=r"'fc' \(linear\) with 4-bit"):
        cost_table(NoDepthwise(), without, [8, 4], [8])


def test_capabilities_of_another_type_are_refused():
    class Odd(Plain):
        def capabilities(self):
            return {"bits": 8}

    with pytest.raises(BackendError, match="answered dict, expected Capabilities"):
        evaluate_cost(Odd(), SMALL, EIGHT)


def test_allocations_and_widths_that_do_not_fit_are_refused():
    with pytest.raises(AllocationError, match="lacks"):
        evaluate_cost(Plain(), SMALL, BitAllocation({"stem": (8, 8)}))
    for widths in ([], [8, 8]):
        with pytest.raises(InputError, match="widths without repetition"):
            cost_table(Plain(), SMALL, widths, [8])
        with pytest.raises(InputError, match="widths without repetition"):
            cost_table(Plain(), SMALL, [8], widths)


def test_the_order_of_an_allocation_does_not_matter():
    backwards = BitAllocation(dict.fromkeys(reversed(SMALL.layer_names), (8, 8)))
    assert list(backwards) != list(EIGHT)
    assert evaluate_cost(Plain(), SMALL, backwards) == evaluate_cost(Plain(), SMALL, EIGHT)
