"""What a simulation says: latency of every layer by the bound that held, and the roofline."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from amed_env.hardware.protocol import Cost, HardwareBackend
from amed_env.hardware.simulator.simulator import SystolicBackend
from amed_env.problem.workload import Workload
from amed_env.report.style import ACCENT, DARK, LIGHT, MIDDLE, layer_axis, legend_above, metric_title, new_figure, tidy

FloatArray = npt.NDArray[np.float64]

_INCHES_PER_LAYER = 0.26
_COLOURS = {"compute": DARK, "memory": ACCENT}
_OTHER = MIDDLE
_NAMED_POINTS = 4


def draw_simulation(backend: HardwareBackend, workload: Workload, cost: Cost) -> Figure:
    """Draw the cost of a network on a device.

    Args:
        backend: The device; the roofline needs a systolic one, whose array and memory are known.
        workload: The network.
        cost: Its cost on the device, with the breakdown by layer.
    """
    metric = "latency_ms" if "latency_ms" in cost.metrics else next(iter(cost.metrics))
    shown = bool(cost.layers) and all(metric in layer.metrics for layer in cost.layers)
    roofline = shown and isinstance(backend, SystolicBackend)
    figure = new_figure(11.5 if roofline else 7.0, 1.6 + _INCHES_PER_LAYER * max(len(workload), 14))
    axes = figure.subplots(1, 2 if roofline else 1, squeeze=False)[0]
    figure.suptitle(
        f"{workload.name} on {cost.device}: {metric_title(metric)} {cost[metric]:.4g} {metric.rpartition('_')[2]}",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    if not shown:
        axes[0].set_axis_off()
        axes[0].text(0.5, 0.5, "the device gives no costs by layer", ha="center", color=DARK)
        return figure
    _draw_layers(axes[0], cost, metric)
    if isinstance(backend, SystolicBackend):
        _draw_roofline(axes[1], backend, workload, cost)
    return figure


def _draw_layers(axes: Axes, cost: Cost, metric: str) -> None:
    rows = np.arange(len(cost.layers))
    values = [layer.metrics[metric] for layer in cost.layers]
    bounds = [layer.bound or "" for layer in cost.layers]
    axes.barh(rows, values, 0.72, color=[_COLOURS.get(bound, _OTHER) for bound in bounds])
    for row, layer in zip(rows, cost.layers, strict=True):
        weight, activation = layer.precision
        text = f"{weight} bit" if weight == activation else f"{weight} / {activation} bit"
        axes.annotate(
            text,
            (values[row], row),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color="#5b6470",
        )
    axes.set_xlim(0, (max(values) or 1.0) * 1.15)
    title = f"{metric_title(metric)} of the layer, {metric.rpartition('_')[2]}"
    layer_axis(axes, [layer.name for layer in cost.layers], title)
    if any(bounds):
        handles = []
        for bound in dict.fromkeys(bounds):
            label = f"bound by {bound}" if bound else "no bound given"
            handles.append(Patch(color=_COLOURS.get(bound, _OTHER), label=label))
        legend_above(axes, columns=3, handles=handles)


def _draw_roofline(axes: Axes, backend: SystolicBackend, workload: Workload, cost: Cost) -> None:
    """MACs per cycle over MACs per byte: no layer is above the memory's slope, nor above the array's peak."""
    bytes_per_cycle = backend.config.bandwidth_bits_per_cycle / 8
    macs = np.array([float(layer.macs) for layer in workload])
    cycles = np.array([float(layer.metrics["cycles"]) for layer in cost.layers])
    moved = np.array([float(layer.metrics["memory_cycles"]) for layer in cost.layers]) * bytes_per_cycle
    intensity, rate = macs / np.maximum(moved, 1.0), macs / np.maximum(cycles, 1.0)
    peaks = backend.peak_macs_per_cycle([layer.precision for layer in cost.layers])
    left = intensity.min() / 2
    right = max(intensity.max() * 10, peaks.max() / bytes_per_cycle * 15)  # room for the names of the roofs
    axes.plot([left, right], [left * bytes_per_cycle, right * bytes_per_cycle], color=LIGHT, linewidth=1.6, zorder=1)
    names: dict[float, list[str]] = {}
    for peak, layer in zip(peaks.tolist(), cost.layers, strict=True):
        names.setdefault(peak, []).append(str(layer.precision))
    for peak, precisions in sorted(names.items()):
        start = max(left, peak / bytes_per_cycle)
        axes.plot([start, right], [peak, peak], color=LIGHT, linewidth=1.6, zorder=1)
        axes.annotate(
            f"{peak:,.0f} MACs per cycle, {', '.join(sorted(set(precisions)))}",
            (right, peak),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
            color="#5b6470",
        )
    colours = [_COLOURS.get(layer.bound or "", _OTHER) for layer in cost.layers]
    axes.scatter(intensity, rate, s=22, color=colours, zorder=2)
    for row, side in _named_points(intensity, rate, np.argsort(-cycles, kind="stable")):
        axes.annotate(
            cost.layers[row].name,
            (intensity[row], rate[row]),
            xytext=(5 * side, -3),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            fontsize=7.5,
            color=DARK,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(min(rate.min(), left * bytes_per_cycle) / 1.5, max(names) * 2)
    axes.set_xlabel(f"MACs per byte of memory traffic (slope: {bytes_per_cycle:g} bytes per cycle)")
    axes.set_ylabel("MACs per cycle")
    tidy(axes)


def _named_points(intensity: FloatArray, rate: FloatArray, order: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """The slowest layers whose name has room to the left (-1) or right (1) of their point, with that side."""
    x, y = np.log10(intensity), np.log10(rate)
    width, height = 0.3 * (x.max() - x.min() + 1.3), 0.03 * (y.max() - y.min() + 0.5)
    chosen: list[tuple[int, int]] = []
    taken: list[tuple[float, float]] = []
    for row in order.tolist():
        if any(abs(x[row] - x[o]) < 1e-9 and abs(y[row] - y[o]) < 1e-9 for o, _ in chosen):
            continue  # equal layers share a point
        others = (np.abs(x - x[row]) > 1e-9) & (np.abs(y - y[row]) < height)
        for side in (-1, 1):
            ahead = side * (x - x[row])
            free = not (others & (ahead > 0) & (ahead < width)).any()
            if free and all(abs(y[row] - other) > height or side != s for other, s in taken):
                chosen.append((row, side))
                taken.append((float(y[row]), side))
                break
        if len(chosen) == _NAMED_POINTS:
            break
    return chosen
