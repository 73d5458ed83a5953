"""The inherited tests pass for devices that keep their promises, fail for those that break one, and miss no check."""

from typing import ClassVar

import pytest
from hardware_samples import SMALL
from small_task import SharedBuffer

from amed_env import Precision
from amed_env.hardware import (
    Capabilities,
    Cost,
    CostTable,
    HardwareBackend,
    TableBackend,
    build_table,
    isolated,
    load_device,
)
from amed_env.hardware.check import CHECKS
from amed_env.testing import HardwareConformance


@pytest.mark.parametrize("shipped", ["bitfusion", "eyeriss-ws", "systolic-32"])
class TestShipped(HardwareConformance):
    @pytest.fixture(autouse=True)
    def _name(self, shipped):
        self.shipped = shipped

    def make_backend(self):
        return load_device(self.shipped)


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


class Broken(HardwareBackend):
    """Keeps every promise but the one that a subclass breaks."""

    name = "broken"
    bits = (2, 8)

    def layer_cost(self, layer, precision):
        return {"latency_ms": layer.macs * precision.weight_bits * 1e-9}


class Doubled(Broken):
    def evaluate_many(self, workload, allocations):
        costs = [self.evaluate(workload, allocation) for allocation in allocations]
        return [Cost(cost.device, {"latency_ms": 2 * cost["latency_ms"]}, cost.layers) for cost in costs]


class BoundTooHigh(Broken):
    def capabilities(self):
        return Capabilities.same_for_all_kinds(self.bits, self.metrics, additive=False)

    def lower_bound(self, workload, weight_bits, activation_bits):
        import numpy as np

        shape = (len(workload), len(weight_bits), len(activation_bits))
        return CostTable(
            workload.layer_names, tuple(weight_bits), tuple(activation_bits), {"latency_ms": np.full(shape, 1e9)}
        )


class AnyLayers(Broken):
    def evaluate(self, workload, allocation):
        cost = super().evaluate(workload, workload.uniform(8))
        return Cost(self.name, cost.metrics)


class ForgetsLayers(Broken):
    known: ClassVar = {"conv": 1.0, "depthwise": 2.0, "pointwise": 3.0, "linear": 4.0, "matmul": 5.0}

    def layer_cost(self, layer, precision):
        return {"latency_ms": self.known[layer.name]}


@pytest.mark.parametrize(
    ("device", "test", "message"),
    [
        (Doubled, "test_many_answers_equal_single_ones", "latency_ms of"),
        (BoundTooHigh, "test_lower_bounds_are_not_above_the_costs", "lower_bound.. says"),
        (AnyLayers, "test_unknown_layers_are_refused_or_costed", "accepts an allocation of other layers"),
        (ForgetsLayers, "test_unknown_layers_are_refused_or_costed", "KeyError.*Raise UnsupportedLayerError"),
    ],
)
def test_broken_promises_fail_their_test_and_no_other(device, test, message):
    suite = type("Suite", (HardwareConformance,), {"make_backend": lambda self: device()})()
    for name in (name for name in dir(suite) if name.startswith("test_")):
        if name == test:
            with pytest.raises(AssertionError, match=message):
                getattr(suite, name)()
        elif device is not AnyLayers:  # which breaks several promises at once
            getattr(suite, name)()
