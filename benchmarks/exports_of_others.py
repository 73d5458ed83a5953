"""Networks that nobody here wrote, exported to ONNX and run: do they answer as they were evaluated?

The networks are those of `networks_of_others.py`, with random weights and batch norms settled; widths of 2 to 8 are
drawn, weights and activations apart. Each is written with integer operators, run by ONNX Runtime on the samples that it
was calibrated with, and compared; what is no layer stays in float. It needs the environment of that script, and
`amed-env[export]`.

    python benchmarks/exports_of_others.py --out exports.json
    python benchmarks/exports_of_others.py --table exports.json > table.md
"""

from __future__ import annotations

import logging
import tempfile
import time
from typing import Any

import numpy as np
import torch
from networks_of_others import settle
from other_networks import NETWORKS, run_rows

from amed_env import BitAllocation, export, make_task
from amed_env.errors import AmedError, DisagreementError


def row_of(name: str) -> dict[str, Any]:
    """What is found out about a network."""
    library, make = NETWORKS[name]
    torch.manual_seed(0)
    network, inputs = make()
    settle(network, inputs)
    row: dict[str, Any] = {"network": name, "library": library}
    start = time.process_time()
    task = make_task(network=network, recipe="nearest", threads=1, calibration=inputs, score="squared-error")
    drawn = np.random.default_rng(0).integers(2, 9, (len(task.workload), 2)).tolist()
    pairs = zip(task.workload, map(tuple, drawn), strict=True)
    allocation = BitAllocation({layer.name: pair for layer, pair in pairs})
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = export(task, allocation, folder, "onnx", verify="search")
        except DisagreementError as error:
            return {**row, "refused": f"DIFFERS: {error}"}
        except AmedError as error:
            return {**row, "refused": str(error)}
    last = found.agreements[-1]
    return {
        **row,
        "layers": len(task.workload),
        "float_bytes": found.float_bytes,
        "bytes": found.size,
        "weight_bytes": found.weight_bytes,
        "ideal_bytes": found.ideal_bytes,
        "same": last.same_answer,
        "bit_equal": last.bit_equal,
        "largest": last.largest_difference,
        "cpu_s": time.process_time() - start,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    lines = [
        "| network | library | layers | float bytes | bytes | weights, ideal | same % | bit-equal % |",
        "|---|" * 8,
    ]
    lines[1] = "|---|---|---|---|---|---|---|---|"
    for row in rows:
        reason = row.get("refused") or row.get("failed")
        if reason:
            lines.append(f"| {row['network']} | {row['library']} | {reason[:160]} |{' |' * 5}")
            continue
        weights = f"{row['weight_bytes']:,}, {row['ideal_bytes']:,.0f}"
        shares = f"{100 * row['same']:.2f} | {100 * row['bit_equal']:.1f}"
        sizes = f"{row['float_bytes']:,} | {row['bytes']:,} | {weights}"
        lines.append(f"| {row['network']} | {row['library']} | {row['layers']} | {sizes} | {shares} |")
    return "\n".join(lines)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    run_rows(__doc__, row_of, table)
