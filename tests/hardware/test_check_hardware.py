"""The conformance test must pass what conforms and name what does not."""

import itertools
import warnings
from typing import ClassVar

import pytest
from hardware_samples import RESNET20

from amed_env.errors import BackendError
from amed_env.hardware import Capabilities, Cost, CostTable, HardwareBackend, check_hardware, device_names, load_device
from amed_env.hardware.check import CHECKS


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
    ("device", "message"),
    [
        (Units, "metric 'latency_ms' is in ms everywhere, not in s"),
        (NoUnit, "'latency_ms' has no unit"),
        (NoMetric, "no metric is declared"),
        (NotANumber, "expected a finite number"),
        (WrongTable, "the table equals evaluate: latency_ms of"),
        (Forgetful, "equal calls give equal answers"),
        (Local, "it can be pickled"),
        (AcceptsAll, "which capabilities.. excludes"),
        (WrongTotal, "totals are the sum over the layers"),
    ],
)
def test_what_does_not_conform_is_named(device, message):
    with pytest.raises(BackendError, match=message):
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
