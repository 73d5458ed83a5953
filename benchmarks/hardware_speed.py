"""How fast the hardware models are, in the way of pytest-benchmark: CPU time of one thread, minimum and median.

    python benchmarks/hardware_speed.py
    python benchmarks/hardware_speed.py --scale-sim /path/to/its/environment/bin/python

A configuration is a layer at one weight width and one activation width, with all metrics of the device. Every figure is
measured for at least two seconds. `--scale-sim` times SCALE-Sim beside it, on three layers of ResNet-18 at one width.
Make it an environment of its own and name the Python in it; nothing of it is needed otherwise:

    python -m venv scale-sim && scale-sim/bin/pip install scalesim "numpy<2"
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from amed_env import Layer, Workload
from amed_env.hardware import device_names, gemm_cycles, load_device

WIDTHS = range(1, 9)
console, progress = Console(width=120), Console(stderr=True, highlight=False)


@dataclasses.dataclass(frozen=True)
class Timing:
    """CPU seconds of one call: the least and the median of `rounds` calls."""

    least: float
    median: float
    rounds: int


def measure(call: Callable[[], object], seconds: float) -> Timing:
    """Time a call again and again, for so many seconds of CPU time."""
    call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return Timing(min(times), statistics.median(times), len(times))


def convolution(name: str, out: int, filters: int, channels: int, kernel: int, size: int) -> Layer:
    """A convolution of an image of size x size into out x out."""
    return Layer(
        name,
        "conv",
        m=out * out,
        n=filters,
        k=channels * kernel**2,
        input_elements=channels * size**2,
        kernel=(kernel, kernel),
    )


def resnet(blocks: tuple[int, ...], bottleneck: bool) -> Workload:
    """ResNet-18 or ResNet-50 on 224 x 224 images, He et al. 2016, with the projections of the shortcuts."""
    layers = [convolution("conv1", 112, 64, 3, 7, 224)]
    channels, size = 64, 56
    for stage, count in enumerate(blocks):
        width, out = 64 * 2**stage, 56 // 2**stage
        wide = 4 * width if bottleneck else width
        for block in range(count):
            name = f"stage{stage}.{block}"
            if bottleneck:
                layers += [
                    convolution(f"{name}.reduce", size, width, channels, 1, size),
                    convolution(f"{name}.conv", out, width, width, 3, size),
                    convolution(f"{name}.expand", out, wide, width, 1, out),
                ]
            else:
                layers += [
                    convolution(f"{name}.conv1", out, width, channels, 3, size),
                    convolution(f"{name}.conv2", out, width, width, 3, out),
                ]
            if channels != wide:
                layers.append(convolution(f"{name}.shortcut", out, wide, channels, 1, size))
            channels, size = wide, out
    layers.append(Layer("fc", "linear", m=1, n=1000, k=channels))
    return Workload(f"ResNet-{50 if bottleneck else 18}", tuple(layers))


def repeated(workload: Workload, times: int) -> Workload:
    """A workload with every layer so many times, under different names."""
    layers = (dataclasses.replace(layer, name=f"{layer.name}#{i}") for i in range(times) for layer in workload)
    return Workload(f"{times} x {workload.name}", tuple(layers))


SCALE_SIM_PROGRAM = """
import contextlib, io, json, sys, tempfile, time
from scalesim.scale_sim import scalesim
start = time.process_time()
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    files = dict(zip(("config", "topology", "layout"), sys.argv[1:]))
    simulator = scalesim(save_disk_space=True, verbose=False, **files)
    simulator.run_scale(top_path=tempfile.mkdtemp())
print(json.dumps(time.process_time() - start))
"""
SCALE_SIM_CONFIG = """\
[general]
run_name = benchmark
[architecture_presets]
ArrayHeight = 32
ArrayWidth = 32
IfmapSramSzkB = 64
FilterSramSzkB = 64
OfmapSramSzkB = 64
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = os
Bandwidth = 10
ReadRequestBuffer = 32
WriteRequestBuffer = 32
MemoryBanks = 1
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
SparseRep = ellpack_block
OptimizedMapping = false
BlockSize = 8
RandomNumberGeneratorSeed = 40
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""


def scale_sim_seconds(python: Path, layer: Layer) -> float:
    """CPU seconds that SCALE-Sim takes for the matrix product of a layer on a 32 x 32 array."""
    with tempfile.TemporaryDirectory() as folder:
        config, topology, layout = (Path(folder, name) for name in ("benchmark.cfg", "layers.csv", "layout.csv"))
        config.write_text(SCALE_SIM_CONFIG)
        # A matrix product as a 1 x 1 convolution of an m x 1 image.
        topology.write_text(
            "Layer, IFMAP height, IFMAP width, filter height, filter width, channels, filters, strides,\n"
            f"layer, {layer.m}, 1, 1, 1, {layer.k}, {layer.n}, 1,\n"
        )
        layout.write_text("Layer,\nlayer," + "1," * 20 + "\n")  # has to be there; custom layouts are switched off
        command = [str(python), "-c", SCALE_SIM_PROGRAM, str(config), str(topology), str(layout)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise typer.BadParameter(f"SCALE-Sim did not run with {python}:\n{answer.stderr[-1500:]}")
    return float(json.loads(answer.stdout.strip().splitlines()[-1]))


def main(
    seconds: Annotated[float, typer.Option(min=2, help="CPU seconds for every figure")] = 2.0,
    devices: Annotated[str, typer.Option(help="names, separated by commas; default: all that are shipped")] = "",
    scale_sim: Annotated[Path | None, typer.Option(help="Python of an environment with scalesim")] = None,
) -> None:
    """Print configurations per second."""
    deep, many = resnet((3, 4, 6, 3), bottleneck=True), repeated(resnet((3, 4, 6, 3), bottleneck=True), 40)
    table = Table(title="Full cost tables, all metrics, one thread, CPU time")
    for column in ("device", "layers", "configurations", "minimum ms", "median ms", "million/s (min)", "rounds"):
        table.add_column(column, justify="left" if column == "device" else "right")
    for name in devices.split(",") if devices else device_names():
        device = load_device(name)
        widths = [bits for bits in WIDTHS if bits in device.bits]
        for workload in (deep, many):
            timing = measure(lambda d=device, w=workload, b=widths: d.table(w, b, b), seconds)  # type: ignore[misc]
            add_row(table, name, len(workload), len(workload) * len(widths) ** 2, timing)
    m, n, k = (np.arange(1, 1_000_001) % (size - 1) + 1 for size in (12544, 2048, 4608))
    for dataflow in ("os", "ws", "is"):
        timing = measure(lambda f=dataflow: gemm_cycles(m, n, k, 32, 32, f), seconds)  # type: ignore[misc]
        add_row(table, f"gemm_cycles, {dataflow}", len(m), len(m), timing)
    console.print(table)
    if scale_sim is not None:
        compare_with_scale_sim(scale_sim, seconds)


def add_row(table: Table, name: str, layers: int, count: int, timing: Timing) -> None:
    """Add a line to the table, and say on stderr that it is measured: the whole table takes minutes."""
    times = (f"{1e3 * value:.3f}" for value in (timing.least, timing.median))
    speed = f"{count / timing.least / 1e6:.1f}"
    table.add_row(name, f"{layers}", f"{count:,}", *times, speed, f"{timing.rounds}")
    progress.print(f"{name}, {layers:,} layers: {speed} million configurations a second")


def compare_with_scale_sim(python: Path, seconds: float) -> None:
    """Print how long SCALE-Sim and the closed form take for the same matrix products, cycles being equal."""
    table = Table(title="One layer at one width, 32 x 32 output stationary: CPU seconds")
    for column in ("layer", "SCALE-Sim", "amed_env, minimum", "ratio"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for layer in [resnet((2, 2, 2, 2), bottleneck=False).layers[i] for i in (-1, -2, 6)]:
        theirs = scale_sim_seconds(python, layer)
        ours = measure(lambda s=layer: gemm_cycles(s.m, s.n, s.k, 32, 32, "os"), seconds).least  # type: ignore[misc]
        progress.print(f"{layer.name}: SCALE-Sim {theirs:.2f} s")
        table.add_row(layer.name, f"{theirs:.2f}", f"{ours:.2e}", f"{theirs / ours:,.0f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
