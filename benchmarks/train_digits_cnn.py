"""Train the digits network and write the weights that are committed with the package.

Run it as `python benchmarks/train_digits_cnn.py`; it takes about a minute on one core. Same seed and same
versions of torch, numpy and scikit-learn on the same kind of CPU: same weights. Hyperparameters were chosen
by accuracy on the search split; the test split is read once, after the weights are final.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import sklearn
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from amed_env.datasets import Samples
from amed_env.datasets.digits import digits_splits, digits_train
from amed_env.networks import DigitsCNN, weights_digest
from amed_env.networks.digits_cnn import WEIGHTS_FILE

OUT = Path(__file__).parent.parent / "amed_env" / "networks" / "weights" / WEIGHTS_FILE
BATCH = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 1e-3


def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move each image by -1, 0 or 1 pixels in both directions, zeros come in.

    Args:
        images: (N, 1, 8, 8) float32.
        generator: Source of the shifts.

    Returns:
        (N, 1, 8, 8) float32.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1))
    down, right = torch.randint(0, 3, (2, len(images)), generator=generator)
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.arange(width)
    return padded[torch.arange(len(images))[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(samples: Samples, epochs: int, seed: int) -> DigitsCNN:
    """Train from scratch by SGD with Nesterov momentum and one cosine.

    Args:
        samples: Training images.
        epochs: Passes over them.
        seed: Of initialisation, order and shifts.

    Returns:
        The network in eval mode.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = DigitsCNN().train()
    optimizer = torch.optim.SGD(
        network.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    steps = epochs * (len(samples) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for _ in track(range(epochs), description="training", console=Console(stderr=True)):
        order = torch.randperm(len(samples), generator=generator)
        for batch in order.split(BATCH):
            if len(batch) < BATCH:  # a last small batch would give batch norm noisy statistics
                continue
            logits = network(shift(samples.inputs[batch], generator))
            loss = F.cross_entropy(logits, samples.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, samples: Samples) -> float:
    """Share of samples whose largest logit is the label's."""
    hits = sum(int((network(inputs).argmax(1) == labels).sum()) for inputs, labels in samples.batches(250))
    return hits / len(samples)


@torch.no_grad()
def rounded(network: nn.Module, bits: int) -> nn.Module:
    """A copy whose weights are rounded to a symmetric grid that spans each output channel."""
    network = copy.deepcopy(network)
    top = 2 ** (bits - 1) - 1
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            scale = module.weight.flatten(1).abs().amax(1).clamp_min(1e-12) / top
            scale = scale.view(-1, *[1] * (module.weight.ndim - 1))
            module.weight.copy_((module.weight / scale).round().clamp(-top - 1, top) * scale)
    return network


def main() -> None:
    """Train, report accuracies as JSON, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--no-test", action="store_true", help="leave the test split unread")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    network = train(digits_train(), options.epochs, options.seed)
    state = network.state_dict()
    tensors = {n: t.contiguous() for n, t in state.items() if not n.endswith("num_batches_tracked")}
    made_by = {
        "script": "benchmarks/train_digits_cnn.py",
        "seed": str(options.seed),
        "epochs": str(options.epochs),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # One entry: the order of several is not fixed, and equal weights are to make equal files.
    save_file(tensors, options.out, {"made_by": json.dumps(made_by)})

    splits = digits_splits()
    parts = {"search": splits.search} if options.no_test else {"search": splits.search, "test": splits.test}
    figures: dict[str, object] = {"digest": weights_digest(tensors), "bytes": options.out.stat().st_size}
    for name, part in parts.items():
        figures[f"{name}_accuracy"] = accuracy(network, part)
        figures[f"{name}_accuracy_by_weight_bits"] = {
            bits: accuracy(rounded(network, bits), part) for bits in (8, 6, 5, 4, 3, 2)
        }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
