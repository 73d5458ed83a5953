"""The command `amed finetune`: its options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from amed_env.commands.options import (
    DEFAULT_DEVICE,
    ActivationBitsOption,
    AllocationOption,
    DeviceOption,
    JsonOption,
    PinOption,
)
from amed_env.commands.output import Output


class Optimizer(StrEnum):
    """What makes the steps."""

    ADAM = "adam"
    SGD = "sgd"


class BatchNorm(StrEnum):
    """Whether convolutions are followed by a batch norm while they are trained."""

    FOLDED = "folded"
    INSERTED = "inserted"


def finetune(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A name from [b]amed tasks[/b].")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for everything that is trained.")],
    allocation: AllocationOption = None,
    bits: Annotated[
        str | None,
        typer.Option(
            "--bits", metavar="N|LIST", help="The same width everywhere; with --walk the widths to choose from."
        ),
    ] = None,
    activation_bits: ActivationBitsOption = None,
    pin: PinOption = None,
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, metavar="N", help="Passes over the training images, the walk among them.")
    ] = 10,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Images of a step.")] = 128,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            metavar="RATE",
            help="At the start; it falls along a cosine. With adam a part of a tensor's own size (0.01 by default), "
            "with sgd absolute (0.02).",
        ),
    ] = None,
    optimizer: Annotated[Optimizer, typer.Option("--optimizer", help="What makes the steps.")] = Optimizer.ADAM,
    weight_decay: Annotated[float, typer.Option("--weight-decay", metavar="RATE", help="Of the weights.")] = 1e-4,
    distill: Annotated[
        float,
        typer.Option(
            "--distill",
            min=0.0,
            max=1.0,
            metavar="PART",
            help="Part of the loss that compares class probabilities with the float network's.",
        ),
    ] = 0.0,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", help="That these probabilities are softened by.")
    ] = 2.0,
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One step size for all weights of a layer, not one an output channel.")
    ] = False,
    batch_norm: Annotated[
        BatchNorm,
        typer.Option(
            "--batch-norm",
            help="Train the weights with batch norms folded, or follow convolutions with a new one meanwhile.",
        ),
    ] = BatchNorm.FOLDED,
    patience: Annotated[
        int | None,
        typer.Option("--patience", min=1, metavar="N", help="Stop after N epochs without a better validation."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, max=2**31 - 1, metavar="S", help="Random seed.")] = 0,
    walk: Annotated[
        bool, typer.Option("--walk", help="Let AMED's walk choose the allocation while the network is trained.")
    ] = False,
    walk_epochs: Annotated[
        int, typer.Option("--walk-epochs", min=1, metavar="N", help="First epochs, in which it walks.")
    ] = 3,
    walk_every: Annotated[
        int, typer.Option("--walk-every", min=1, metavar="N", help="Steps of training between two moves.")
    ] = 20,
    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", "-b", metavar="NAME=VALUE", help="With --walk: a limit, as in [b]amed search[/b]."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="With --walk: an option of the agent amed (pin_ends=true)."),
    ] = None,
    device: DeviceOption = DEFAULT_DEVICE,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME", help="Where training starts; as in [b]amed evaluate[/b]."),
    ] = None,
    compute: Annotated[
        str | None,
        typer.Option("--compute", metavar="DEVICE", help="Where torch computes: cpu, or cuda where there is one."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, metavar="N", help="Threads of torch; by default all cores.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the training in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a network for an allocation (quantization-aware, learned step sizes), from its post-training state on.

    It trains on the training set alone, and keeps the epoch that is best on a part of it that is held out.

    Ctrl-C keeps a checkpoint; --resume continues it, whatever stopped the training.

    [b]Examples:[/b]

    amed finetune digits-cnn --allocation runs/digits/allocation.json --epochs 20 --out runs/tuned

    amed finetune cifar10-resnet20 --bits 3 --pin first=8 --pin last=8 --distill 0.5 --out runs/three

    amed finetune digits-cnn --walk --budget latency=0.4 --epochs 30 --walk-epochs 15 --walk-every 3 --out runs/walk
    """
    with Output(as_json) as output:
        with output.status("starting"):
            from amed_env.commands.finetune import FinetuneRequest
            from amed_env.commands.finetune import finetune as run
        settings = {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": DEFAULT_RATES[optimizer] if learning_rate is None else learning_rate,
            "optimizer": optimizer.value,
            "weight_decay": weight_decay,
            "distill": distill,
            "temperature": temperature,
            "per_channel": not per_tensor,
            "batch_norm": batch_norm.value,
            "patience": patience,
            "seed": seed,
        }
        request = FinetuneRequest(
            task=task,
            out=out,
            settings=settings,
            allocation=allocation,
            bits=bits,
            activation_bits=activation_bits,
            pins=pin or [],
            resume=resume,
            device=device,
            recipe=recipe,
            threads=threads,
            compute=compute,
            walk=walk,
            walk_epochs=walk_epochs,
            walk_every=walk_every,
            budgets=budget or [],
            options=option or [],
        )
        code = run(output, request)
    raise typer.Exit(code)


DEFAULT_RATES = {Optimizer.ADAM: 0.01, Optimizer.SGD: 0.02}
