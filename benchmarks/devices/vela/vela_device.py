"""Arm's compiler for Ethos-U as a device: whole networks, weights compressed by their width.

Reads a request in format `amed-request/2`, writes the network as TensorFlow Lite, compiles it with Vela and answers its
estimate: time of an inference, memory for activations, and flash for the compressed weights. It needs an environment of
its own, and the device files next to it name the Python of that:

    python -m venv .venv && .venv/bin/pip install ethos-u-vela
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graph import Graph, NotWritableError

# System and memory of Arm's example configurations that belong to an accelerator.
SYSTEMS = {
    "ethos-u55": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u65": ("Ethos_U65_High_End", "Dedicated_Sram"),
}
Writer = Callable[[Graph], bytes]


def compiled(model: Path, accelerator: str, vela: str) -> dict[str, str]:
    """The row of Vela's summary.

    Raises:
        RuntimeError: If it fails; the message has the end of what it wrote.
    """
    system, memory = SYSTEMS[accelerator.rpartition("-")[0]]
    command = [vela, str(model), "--output-dir", str(model.parent), "--accelerator-config", accelerator]
    command += ["--config", "Arm/vela.ini", "--system-config", system, "--memory-mode", memory]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    summaries = sorted(model.parent.glob("*summary*.csv"))
    if run.returncode or not summaries:
        raise RuntimeError(f"Vela failed: {(run.stdout + run.stderr)[-1000:]}")
    with summaries[0].open(newline="") as stream:
        return next(iter(csv.DictReader(stream)))


def answer(request: dict[str, Any], accelerator: str, vela: str, write: Writer) -> dict[str, Any]:
    """The answer to a request."""
    wrong = [layer["name"] for layer in request["layers"] if layer["a_bits"] != 8 or not 2 <= layer["w_bits"] <= 8]
    if wrong:
        return {"unsupported": f"layer {wrong[0]}: activations have 8 bits here, weights 2 to 8"}
    try:
        graph = Graph(request)
    except NotWritableError as error:
        return {"unsupported": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "network.tflite")
        model.write_bytes(write(graph))
        row = compiled(model, accelerator, vela)
    # Weights of Ethos-U55 lie in flash; in the memory mode of Ethos-U65 they are copied into DRAM, and counted there.
    weights = float(row["off_chip_flash_memory_used"]) + float(row.get("dram_memory_used") or 0)
    costs = {"latency_ms": float(row["inference_time"]) * 1e3, "sram_kib": float(row["sram_memory_used"])}
    return {"total": {**costs, "flash_kib": weights}}


def main() -> None:
    """Answer the request on standard input."""
    from tflite import tflite_of  # needs what comes with Vela

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accelerator", default="ethos-u55-128")
    parser.add_argument("--vela", default=str(Path(sys.executable).with_name("vela")))
    arguments = parser.parse_args()
    found = answer(json.load(sys.stdin), arguments.accelerator, arguments.vela, tflite_of)
    json.dump({"format": "amed-answer/1", **found}, sys.stdout)


if __name__ == "__main__":
    main()
