"""The conformance test and the tests that devices inherit: they pass what conforms and name what does not."""

import itertools
import re
import warnings
from typing import ClassVar

import numpy as np
import pytest
from hardware_samples import RESNET20, SMALL
from small_task import SharedBuffer

from amed_env import Precision
from amed_env.errors import BackendError
from amed_env.hardware import (
    Capabilities,
    Cost,
    CostTable,
    HardwareBackend,
    TableBackend,
    build_table,
    check_hardware,
    device_names,
    isolated,
    load_device,
)
from amed_env.hardware.check import CHECKS, conformance_workload, run_checks
from amed_env.testing import HardwareConformance


class Good(HardwareBackend):
    name = "good"
    bits = (2, 4, 8)

    def layer_cost(self, layer, precision):
        return {"latency_ms": layer.macs * precision.weight_bits * 1e-9}


class Units(Good):
    metrics: ClassVar = {"latency_ms": "s"}


class NoUnit(Good):
    metrics: ClassVar = {"latency_ms": ""}


class NoMetric(Good):
    metrics: ClassVar = {}


class NotANumber(Good):
    def layer_cost(self, layer, precision):
        return {"latency_ms": float("nan")}


class WrongTable(Good):
    def table(self, workload, weight_bits, activation_bits):
        table = load_device("bitfusion").table(workload, weight_bits, activation_bits)
        return CostTable(
            table.layers, table.weight_bits, table.activation_bits, {"latency_ms": table.metrics["latency_ms"]}
        )


class Forgetful(Good):
    calls = itertools.count()

    def layer_cost(self, layer, precision):
        return {"latency_ms": float(next(self.calls))}


class Local(Good):
    def __init__(self):
        self.handle = lambda: None


class AcceptsAll(Good):
    def evaluate(self, workload, allocation):
        return Cost(self.name, {"latency_ms": 1.0})

    def capabilities(self):
        return Capabilities.same_for_all_kinds(self.bits, self.metrics, additive=False)


class WrongTotal(Good):
    def evaluate(self, workload, allocation):
        cost = super().evaluate(workload, allocation)
        return Cost(cost.device, {"latency_ms": cost["latency_ms"] * 1.01}, cost.layers)


class Backwards(Good):
    """Wider operands are faster here, as on some real devices."""

    def layer_cost(self, layer, precision):
        return {"latency_ms": layer.macs / precision.weight_bits}


class ConvOnly(Good):
    def capabilities(self):
        return Capabilities({"conv": (4, 8)}, {"conv": (8,)}, self.metrics)


class Noisy(Forgetful):
    def capabilities(self):
        return Capabilities.same_for_all_kinds(self.bits, self.metrics, deterministic=False)


class Doubled(Good):
    def evaluate_many(self, workload, allocations):
        costs = [self.evaluate(workload, allocation) for allocation in allocations]
        return [Cost(cost.device, {"latency_ms": 2 * cost["latency_ms"]}, cost.layers) for cost in costs]


class BoundTooHigh(Good):
    def capabilities(self):
        return Capabilities.same_for_all_kinds(self.bits, self.metrics, additive=False)

    def lower_bound(self, workload, weight_bits, activation_bits):
        too_high = {"latency_ms": np.full((len(workload), len(weight_bits), len(activation_bits)), 1e9)}
        return CostTable(workload.layer_names, tuple(weight_bits), tuple(activation_bits), too_high)


class AnyLayers(Good):
    def evaluate(self, workload, allocation):
        return Cost(self.name, super().evaluate(workload, workload.uniform(8)).metrics)


class ForgetsLayers(Good):
    known: ClassVar = {"conv": 1.0, "depthwise": 2.0, "pointwise": 3.0, "linear": 4.0, "matmul": 5.0}

    def layer_cost(self, layer, precision):
        return {"latency_ms": self.known[layer.name]}


@pytest.mark.parametrize("name", sorted(set(device_names()) - {"bitfusion-published"}))
@pytest.mark.parametrize("workload", [None, RESNET20], ids=["sample", "resnet20"])
def test_shipped_devices_conform_without_a_warning(name, workload):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(check_hardware(load_device(name), workload)) == len(CHECKS)


def test_the_published_accounting_of_bit_fusion_conforms_but_is_not_monotone():
    """A tensor that just fits its buffer is loaded before the first product, and compute waits for it."""
    with pytest.warns(UserWarning, match="latency_ms falls as weights get wider"):
        assert len(check_hardware(load_device("bitfusion-published"), RESNET20)) == len(CHECKS)


@pytest.mark.parametrize("device", [Good, ConvOnly, Noisy])
def test_what_conforms_passes(device):
    check_hardware(device())


@pytest.mark.parametrize(
    ("device", "promise", "message"),
    [
        (Units, "declared metrics have units", "metric 'latency_ms' is in ms everywhere, not in s"),
        (NoUnit, "declared metrics have units", "'latency_ms' has no unit"),
        (NoMetric, "declared metrics have units", "no metric is declared"),
        (WrongTable, "the table equals evaluate", "latency_ms of"),
        (Local, "it can be pickled", "pickle"),
        (Doubled, "many answers equal single ones", "latency_ms of"),
        (BoundTooHigh, "lower bounds are not above the costs", "lower_bound.. says"),
        (ForgetsLayers, "unknown layers are refused or costed", "KeyError.*Raise UnsupportedLayerError"),
        # These break several promises at once.
        (WrongTotal, "totals are the sum over the layers", "latency_ms of"),
        (NotANumber, "costs are finite, complete and not negative", "expected a finite number"),
        (Forgetful, "equal calls give equal answers", "latency_ms of"),
        (AcceptsAll, "unsupported widths and kinds are refused", "which capabilities.. excludes"),
        (AnyLayers, "unknown layers are refused or costed", "accepts an allocation of other layers"),
    ],
)
def test_a_broken_promise_is_named_and_the_others_hold(device, promise, message):
    _, failed = run_checks(device(), conformance_workload(device()))
    assert re.search(message, failed[promise])
    assert list(failed) == [promise] or device in (WrongTotal, NotANumber, Forgetful, AcceptsAll, AnyLayers)
    with pytest.raises(BackendError, match=f"- {promise}: .*{message}"):
        check_hardware(device())


def test_all_failures_are_listed():
    class Bad(Units, Local):
        pass

    with pytest.raises(BackendError, match="fails 2 of 10 checks") as caught:
        check_hardware(Bad())
    assert str(caught.value).count("\n- ") == 2


def test_costs_that_fall_with_bits_are_a_warning_only():
    with pytest.warns(UserWarning, match=r"latency_ms falls as weights get wider in conv, depthwise"):
        check_hardware(Backwards())


def test_a_device_without_any_layers_is_refused():
    class Nothing(Good):
        def capabilities(self):
            return Capabilities({}, {}, self.metrics)

    with pytest.raises(BackendError, match="supports no kind of layer"):
        check_hardware(Nothing())


class TestTable(HardwareConformance):
    def make_backend(self):
        return TableBackend(build_table(load_device("bitfusion"), SMALL, [Precision(2, 2), Precision(8, 8)], {}))

    def make_workload(self):
        return SMALL


class TestSharedBuffer(HardwareConformance):
    def make_backend(self):
        class Sharing(SharedBuffer):
            bits = (2, 8)

            def evaluate(self, workload, allocation):
                allocation.require_layers(workload.layer_names, "it")
                for layer in workload:
                    self.capabilities().require(layer, allocation[layer.name], self.name)
                return super().evaluate(workload, allocation)

            def __reduce__(self):
                return type(self).make, ()

        return Sharing()

    # A class inside a function cannot be pickled; that promise has its own test below.
    test_it_can_be_pickled = None


class TestIsolated(HardwareConformance):
    def make_backend(self):
        if not hasattr(type(self), "device"):
            type(self).device = isolated(load_device("systolic-32"), 60.0)
        return self.device

    @classmethod
    def teardown_class(cls):
        cls.device.close()


def test_no_check_is_missing_in_the_class():
    called = set()

    class Recording(HardwareConformance):
        def _check(self, promise):
            called.add(promise)

    for name in dir(Recording):
        if name.startswith("test_") and "warning" not in name:
            getattr(Recording(), name)()
    assert called == set(CHECKS)


def test_a_broken_promise_fails_its_inherited_test():
    suite = type("Suite", (HardwareConformance,), {"make_backend": lambda self: Doubled()})()
    suite.test_it_can_be_pickled()
    with pytest.raises(AssertionError, match="latency_ms of"):
        suite.test_many_answers_equal_single_ones()
