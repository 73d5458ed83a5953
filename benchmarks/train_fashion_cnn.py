"""Train the Fashion-MNIST network and write the weights that are committed with the package.

Run it as `python benchmarks/train_fashion_cnn.py`; it takes about thirteen minutes of one core. Same seed and same
version of torch on the same kind of CPU: same weights. It trains on 54,000 images of the training file and measures on
the other 6,000, so that hyperparameters can be chosen without the test file, which is read with `--test` only.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from amed_env.datasets import Samples
from amed_env.datasets.fashion_mnist import fashion_mnist_splits, fashion_mnist_training
from amed_env.networks import FashionCNN, weights_digest
from amed_env.networks.fashion_cnn import WEIGHTS_FILE

OUT = Path(__file__).parent.parent / "amed_env" / "networks" / "weights" / WEIGHTS_FILE
BATCH = 128
LEARNING_RATE = 0.15
WEIGHT_DECAY = 2e-4
LARGEST_SHIFT = 1


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the images, and move all of them by the same up to one pixel in both directions.

    Args:
        images: (N, 1, H, W) float32.
        generator: Source of the choices.

    Returns:
        (N, 1, H, W) float32; zeros come in at the border.
    """
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    down, right = torch.randint(0, 2 * LARGEST_SHIFT + 1, (2,), generator=generator).tolist()
    height, width = images.shape[2:]
    return F.pad(images, [LARGEST_SHIFT] * 4)[:, :, down : down + height, right : right + width]


def train(samples: Samples, epochs: int, seed: int) -> FashionCNN:
    """Train from scratch by SGD with Nesterov momentum and one cosine.

    Args:
        samples: Training images.
        epochs: Passes over them.
        seed: Of initialisation, order and augmentation.

    Returns:
        The network in eval mode.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = FashionCNN().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        network.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    steps = epochs * (len(samples) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15)
    for _ in track(range(epochs), description="training", console=Console(stderr=True)):
        order = torch.randperm(len(samples), generator=generator)
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            images = augment(samples.inputs[batch], generator).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(images), samples.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


@torch.inference_mode()
def accuracy(network: nn.Module, samples: Samples) -> float:
    """Share of samples whose largest logit is the label's."""
    hits = sum(int((network(inputs).argmax(1) == labels).sum()) for inputs, labels in samples.batches(250))
    return hits / len(samples)


def main() -> None:
    """Train, write the weights, and report accuracies as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--test", action="store_true", help="read the test file at the end")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    training, validation = fashion_mnist_training()
    start = time.process_time()
    network = train(training, options.epochs, options.seed)
    seconds = time.process_time() - start
    state = network.state_dict()
    tensors = {n: t.contiguous() for n, t in state.items() if not n.endswith("num_batches_tracked")}
    made_by = {
        "script": "benchmarks/train_fashion_cnn.py",
        "seed": str(options.seed),
        "epochs": str(options.epochs),
        "torch": torch.__version__,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # One entry: the order of several is not fixed, and equal weights are to make equal files.
    save_file(tensors, options.out, {"made_by": json.dumps(made_by)})

    parts = {"validation": validation}
    if options.test:
        splits = fashion_mnist_splits()
        parts |= {"search": splits.search, "test": splits.test}
    figures: dict[str, object] = {
        "digest": weights_digest(tensors),
        "bytes": options.out.stat().st_size,
        "cpu_seconds": round(seconds),
        **{f"{name}_accuracy": accuracy(network, part) for name, part in parts.items()},
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
