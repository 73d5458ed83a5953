"""Tied layers: the smaller workload, and costs that are those of the whole network."""

import pytest
from small_task import BitProportional, SharedBuffer

from amed_env import BitAllocation, Layer, Workload
from amed_env.errors import AllocationError, UnknownNameError, WorkloadError
from amed_env.hardware import check_hardware, cost_table, evaluate_cost, load_device
from amed_env.hardware.tied import TiedDevice
from amed_env.problem.ties import Ties

WORKLOAD = Workload(
    "tied",
    (
        Layer("stem", "conv", m=64, n=4, k=27),
        Layer("conv", "conv", m=16, n=8, k=36, kernel=(3, 3)),
        Layer("shortcut", "conv", m=16, n=8, k=4),
        Layer("head", "linear", m=1, n=10, k=8),
    ),
)
TIES = Ties.of(WORKLOAD, [("shortcut", "conv")])


def test_groups_stand_in_network_order():
    assert TIES.groups == (("stem",), ("conv", "shortcut"), ("head",))
    assert TIES.names == ("stem", "conv+shortcut", "head") and not TIES.trivial
    assert Ties.of(WORKLOAD).trivial and Ties.of(WORKLOAD).reduced() == WORKLOAD


def test_a_group_has_the_work_and_the_weights_of_its_layers():
    reduced = TIES.reduced()
    assert (reduced.macs, reduced.weight_elements) == (WORKLOAD.macs, WORKLOAD.weight_elements)
    merged = reduced.layers[1]
    assert (merged.m, merged.n, merged.k, merged.kernel) == (16, 8, 40, (3, 3))
    chosen = BitAllocation({"stem": (8, 8), "conv+shortcut": (2, 4), "head": (4, 4)})
    assert reduced.weight_kib(chosen) == WORKLOAD.weight_kib(TIES.expand(chosen))
    assert reduced.bops(chosen) == WORKLOAD.bops(TIES.expand(chosen))


def test_allocations_go_both_ways():
    chosen = BitAllocation({"stem": (8, 8), "conv+shortcut": (2, 4), "head": (4, 4)})
    full = TIES.expand(chosen)
    assert list(full) == ["stem", "conv", "shortcut", "head"] and full["shortcut"] == full["conv"] == (2, 4)
    assert TIES.reduce(full) == chosen
    with pytest.raises(AllocationError, match="'conv' and 'shortcut' are tied"):
        TIES.reduce(full.replace({"shortcut": (4, 4)}))
    with pytest.raises(AllocationError, match="does not fit"):
        TIES.expand(full)


def test_ties_that_make_no_sense_are_refused():
    with pytest.raises(UnknownNameError, match="layer to tie"):
        Ties.of(WORKLOAD, [("conv", "shortcutt")])
    with pytest.raises(WorkloadError, match="tied twice"):
        Ties.of(WORKLOAD, [("conv", "shortcut"), ("conv", "head")])
    with pytest.raises(WorkloadError, match="cannot be tied"):
        Ties.of(WORKLOAD, [("stem", "conv")]).reduced()


@pytest.mark.parametrize("device", ["bitfusion", "eyeriss-ws", BitProportional(), SharedBuffer()])
def test_costs_are_those_of_the_whole_network(device):
    inner = load_device(device)
    tied = TiedDevice(inner, TIES)
    chosen = BitAllocation({"stem": (8, 8), "conv+shortcut": (2, 2), "head": (4, 4)})
    reduced = TIES.reduced()
    found, whole = evaluate_cost(tied, reduced, chosen), evaluate_cost(inner, WORKLOAD, TIES.expand(chosen))
    assert dict(found.metrics) == dict(whole.metrics)
    if tied.capabilities().additive:
        latency = {layer.name: layer.metrics["latency_ms"] for layer in whole.layers}
        table = cost_table(tied, reduced, (2, 4, 8), (2, 4, 8))
        assert table.metrics["latency_ms"][1, 0, 0] == pytest.approx(latency["conv"] + latency["shortcut"])
        assert table.totals(chosen)["latency_ms"] == pytest.approx(whole["latency_ms"])
        assert [layer.name for layer in found.layers] == list(TIES.names)


def test_a_tied_device_conforms():
    check_hardware(TiedDevice(load_device("bitfusion"), TIES), TIES.reduced())
