"""Every format of export on the shipped networks: size, agreement, metric and time.

    AMED_DATA_DIR=data python benchmarks/exports.py digits-cnn kws-dscnn --samples 400
    python benchmarks/exports.py digits-cnn --cortex-m4 20       # and run on an emulated microcontroller

Two allocations of each network: 4 bits everywhere, and drawn widths of 2 to 7 bits, weights and activations apart.
`--cortex-m4` takes arm-none-eabi-gcc with newlib, and qemu-system-arm.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from amed_env import BitAllocation, ExportOptions, export, make_task
from amed_env.deploy.c.building import MICROCONTROLLER, MICROCONTROLLER_FLAGS
from amed_env.errors import AmedError

BOARD = Path(__file__).parent / "cortex_m4"
QEMU = "qemu-system-arm -M mps2-an386 -cpu cortex-m4 -display none -serial none -monitor none"
FORMATS = {
    "c": ("c", ExportOptions()),
    "c, fixed point": ("c", ExportOptions(epilogue="fixed")),
    "onnx, integer": ("onnx", ExportOptions()),
    "onnx, integer, types": ("onnx", ExportOptions(storage="types")),
    "onnx, qdq": ("onnx", ExportOptions(style="qdq")),
}
console = Console(width=200)


def main(
    names: Annotated[list[str], typer.Argument(help="tasks")],
    samples: Annotated[int, typer.Option(help="of the test split")] = 1_000,
    formats: Annotated[str | None, typer.Option(help="with semicolons; all by default")] = None,
    cortex_m4: Annotated[int, typer.Option(help="samples to run on an emulated Cortex-M4")] = 0,
    recipe: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Print a table in Markdown."""
    wanted = list(FORMATS) if formats is None else formats.split(";")
    print(
        "| task | bits | format | bytes (float) | weights: ideal + | same answer % | bit-equal % | metric | ms | note |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in names:
        task = make_task(name, recipe=recipe, threads=1)
        numbers = np.random.default_rng(0)
        drawn = numbers.integers(2, 8, (len(task.workload), 2)).tolist()
        odd = BitAllocation({layer.name: pair for layer, pair in zip(task.workload, map(tuple, drawn), strict=True)})
        for bits, allocation in (("4", task.uniform(4)), ("2 to 7", odd)):
            for form in wanted:
                print(row(task, name, bits, allocation, form, samples, cortex_m4), flush=True)


def row(task, name, bits, allocation, form, samples, cortex_m4):
    """One export as a row."""
    format_, options = FORMATS[form]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            found = export(task, allocation, folder, format_, options, samples)
        except AmedError as error:
            return f"| {name} | {bits} | {form} | {str(error).splitlines()[0][:150]} |"
        last = found.agreements[-1]
        evaluated, exported = next(iter(last.metrics.values()))
        note = [text.split(": ")[1] for text in found.remarks if MICROCONTROLLER in text]
        if cortex_m4 and format_ == "c":
            note.append(on_cortex_m4(task, allocation, folder, cortex_m4))
        extra = found.weight_bytes - found.ideal_bytes
        return (
            f"| {name} | {bits} | {form} | {found.size:,} ({found.float_bytes:,}) | "
            f"{found.ideal_bytes:,.0f} + {extra:,.0f} | {100 * last.same_answer:.2f} | "
            f"{100 * last.bit_equal:.1f} | {100 * exported:.2f} ({100 * evaluated:.2f}) | {last.ms_a_sample:.2f} | "
            f"{'; '.join(note)} |"
        )


def on_cortex_m4(task, allocation, folder, count):
    """Whether the emulated microcontroller returns the bytes that this machine does."""
    evaluator = task.evaluator
    sources = [folder / "model.c", folder / "main.c", BOARD / "start.c"]
    linked = ["--specs=rdimon.specs", "-nostartfiles", "-T", BOARD / "memory.ld", "-lm", "-lc", "-lrdimon"]
    target = folder / "model.elf"
    flags = [*MICROCONTROLLER_FLAGS, "-ffp-contract=off", "-I", folder]
    subprocess.run([MICROCONTROLLER, *flags, "-o", target, *sources, *linked], check=True)
    inputs, _ = next(iter(evaluator.samples("test").batches(count)))
    command = [*QEMU.split(), "-semihosting-config", "enable=on,target=native", "-kernel", str(target)]
    done = subprocess.run(command, input=inputs.contiguous().numpy().tobytes(), capture_output=True, check=True)
    subprocess.run(["make", "-C", folder, "model"], check=True, capture_output=True)
    here = subprocess.run(
        folder / "model", input=inputs.contiguous().numpy().tobytes(), capture_output=True, check=True
    )
    return f"Cortex-M4: {'equal' if done.stdout == here.stdout else 'DIFFERENT'} on {len(inputs)} samples"


if __name__ == "__main__":
    typer.run(main)
