"""SCALE-Sim as a device: cycles of every layer's matrix product on a systolic array, at one width.

Reads a request in format `amed-request/1`; answers the total cycles of every layer, and its latency at a given clock.
SCALE-Sim knows no bit-widths: the costs are the same at all of them. It needs an environment of its own:

    python -m venv .venv && .venv/bin/pip install scalesim "numpy<2"
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

CONFIG = """\
[general]
run_name = amed
[architecture_presets]
ArrayHeight = {size}
ArrayWidth = {size}
IfmapSramSzkB = 64
FilterSramSzkB = 64
OfmapSramSzkB = 64
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = {dataflow}
Bandwidth = 10
ReadRequestBuffer = 32
WriteRequestBuffer = 32
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
Product = tuple[int, int, int]


def cycles_of(products: list[Product], size: int, dataflow: str) -> dict[Product, float]:
    """Total cycles of matrix products (m x k) by (k x n), by m, n and k."""
    from scalesim.scale_sim import scalesim  # in an environment of its own

    with tempfile.TemporaryDirectory() as folder:
        config, topology, layout = (Path(folder, name) for name in ("array.cfg", "layers.csv", "layout.csv"))
        config.write_text(CONFIG.format(size=size, dataflow=dataflow))
        rows = (f"L{number}, {m}, {n}, {k},\n" for number, (m, n, k) in enumerate(products))
        topology.write_text("Layer, M, N, K,\n" + "".join(rows))
        # Has to be there; custom layouts are switched off.
        rows = (f"L{number}," + "1," * 20 + "\n" for number in range(len(products)))
        layout.write_text("Layer name," + "x," * 20 + "\n" + "".join(rows))
        with contextlib.redirect_stdout(io.StringIO()):
            files = {"config": str(config), "topology": str(topology), "layout": str(layout)}
            simulator = scalesim(save_disk_space=True, verbose=False, input_type_gemm=True, **files)
            simulator.run_scale(top_path=folder)
        return dict(zip(products, read_report(next(Path(folder).rglob("COMPUTE_REPORT.csv"))), strict=True))


def read_report(path: Path) -> list[float]:
    """Total cycles by layer, in their order."""
    with path.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    column = [name.strip() for name in header].index("Total Cycles")
    return [float(row[column]) for row in rows if row and row[0].strip().isdigit()]


def answer(request: dict[str, Any], clock_mhz: float, cycles: dict[Product, float]) -> dict[str, Any]:
    """The answer to a request, from the cycles of its products."""
    layers = []
    for layer in request["layers"]:
        total = cycles[layer["m"], layer["n"], layer["k"]] * layer["groups"]
        layers.append({"name": layer["name"], "cycles": total, "latency_ms": total / (clock_mhz * 1e3)})
    total = {metric: math.fsum(layer[metric] for layer in layers) for metric in ("cycles", "latency_ms")}
    return {"format": "amed-answer/1", "total": total, "layers": layers}


def main() -> None:
    """Answer the request on standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=16, help="rows and columns of the array")
    parser.add_argument("--dataflow", choices=("os", "ws", "is"), default="ws")
    parser.add_argument("--clock-mhz", type=float, default=200.0)
    arguments = parser.parse_args()
    request = json.load(sys.stdin)
    products = sorted({(layer["m"], layer["n"], layer["k"]) for layer in request["layers"]})
    json.dump(answer(request, arguments.clock_mhz, cycles_of(products, arguments.size, arguments.dataflow)), sys.stdout)


if __name__ == "__main__":
    main()
