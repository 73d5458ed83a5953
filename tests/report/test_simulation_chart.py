"""The picture of a simulation: every layer in its colour, and no point above a roof."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from amed_env import Layer, Precision, Workload
from amed_env.hardware import Cost, evaluate_cost, load_device
from amed_env.report.simulation_chart import draw_simulation
from amed_env.report.style import ACCENT, DARK

NETWORK = Workload(
    "two",
    (Layer("heavy", "conv", m=1024, n=64, k=576, input_elements=65536), Layer("light", "linear", m=1, n=999, k=512)),
)


def drawn(device, bits=8):
    backend = load_device(device)
    cost = evaluate_cost(backend, NETWORK, NETWORK.uniform(bits))
    return draw_simulation(backend, NETWORK, cost), cost


def test_bars_are_the_latencies_in_the_colour_of_their_bound():
    figure, cost = drawn("systolic-32")
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [layer.metrics["latency_ms"] for layer in cost.layers]
    assert [layer.bound for layer in cost.layers] == ["compute", "memory"]
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [DARK, ACCENT]


@pytest.mark.parametrize("device", ["systolic-32", "bitfusion", "eyeriss-ws"])
@pytest.mark.parametrize("bits", [2, 8])
def test_no_point_is_above_a_roof(device, bits):
    figure, _ = drawn(device, bits)
    roofs = figure.axes[1]
    (points,) = roofs.collections
    x, y = points.get_offsets().T
    slope, *flats = (line.get_xydata() for line in roofs.lines)
    assert (y <= x * slope[0, 1] / slope[0, 0] * (1 + 1e-6)).all()
    assert len(flats) == 1 and (y <= flats[0][0, 1]).all()


def test_peaks_by_hand():
    precisions = [Precision(8, 8), Precision(4, 8), Precision(2, 2), Precision(16, 16)]
    assert np.array_equal(load_device("bitfusion").peak_macs_per_cycle(precisions), [512, 1024, 8192, 128])
    assert np.array_equal(load_device("systolic-32").peak_macs_per_cycle(precisions[:2]), [1024, 1024])


def test_devices_without_an_array_have_no_roofline():
    assert len(drawn("bitfusion-chained")[0].axes) == 1
    bare = draw_simulation(load_device("bitfusion-chained"), NETWORK, Cost("bare", {"latency_ms": 3.0}))
    assert "no costs by layer" in bare.axes[0].texts[0].get_text()
