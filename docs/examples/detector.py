"""A detector's raw heads: boxes and classes of garments at two scales, without labels; divergence.

Garments of Fashion-MNIST in two sizes lie on a canvas of 64 x 64. The network is trained with boxes; the search reads
canvases alone, one by one from an iterable dataset, and compares what a function makes of the heads. From the
repository's root, with AMED_DATA_DIR set (`amed fetch fashion-cnn` brings the images; training takes 2 minutes, once):

    amed search --network docs.examples.detector:build --agent evolution --budget latency=0.4 -n 40 --out runs/detector
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

SIZE, CLASSES, STRIDES = 64, 10, (8, 16)


class Canvases(IterableDataset):
    """Canvases float32 (1, 64, 64) in 0..1 with up to four garments; for training also what each cell should answer.

    Args:
        kind: File of Fashion-MNIST: `train` or `t10k`.
        garments: The garments of that file which may be used.
        count: How many canvases.
        targets: Whether to yield the cells' targets too.
    """

    def __init__(self, kind: str, garments: range, count: int, targets: bool = False):
        folder = Path(os.environ["AMED_DATA_DIR"], "FashionMNIST/raw")
        images = np.fromfile(folder / f"{kind}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 28, 28)
        labels = np.fromfile(folder / f"{kind}-labels-idx1-ubyte", np.uint8)[8:]
        self.images, self.labels = images[garments].astype(np.float32) / 255, labels[garments]
        self.count, self.targets = count, targets

    def __iter__(self):
        random = np.random.default_rng(self.count)  # the same canvases in every pass
        for _ in range(self.count):
            canvas, cells = self._drawn(random)
            yield (canvas, cells) if self.targets else canvas

    def _drawn(self, random: np.random.Generator) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A canvas, and for each scale (6, H, W): whether a garment's middle is there, its class, and its box."""
        canvas = np.zeros((SIZE, SIZE), dtype=np.float32)
        cells = [np.zeros((6, SIZE // stride, SIZE // stride), dtype=np.float32) for stride in STRIDES]
        for garment in random.integers(len(self.images), size=random.integers(1, 5)):
            scale = int(random.integers(2))  # small garments belong to the fine scale, large ones to the coarse one
            shown, stride = self.images[garment][:: 2 - scale, :: 2 - scale], STRIDES[scale]
            side = len(shown)
            top, left = random.integers(SIZE - side + 1, size=2)
            canvas[top : top + side, left : left + side] = np.maximum(
                canvas[top : top + side, left : left + side], shown
            )
            rows, columns = np.nonzero(shown)
            low, high = np.array([rows.min(), columns.min()]), np.array([rows.max(), columns.max()]) + 1
            middle, extent = ((low + high) / 2 + (top, left)) / stride, (high - low) / side
            row, column = middle.astype(int)
            cells[scale][:, row, column] = (1, self.labels[garment], *(middle - (row, column)), *extent)
        return torch.from_numpy(canvas)[None], [torch.from_numpy(part) for part in cells]


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A convolution with its norm."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Detector(nn.Module):
    """Images (N, 1, 64, 64) to dicts of `objectness` (N, 1, H, W), `classes` (N, 10, H, W), `boxes` (N, 4, H, W)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(block(1, 8, 2), block(8, 16, 2), block(16, 32), block(32, 32, 2))
        self.fine, self.coarse = block(32, 32), nn.Sequential(block(32, 48, 2), block(48, 48))
        self.heads = nn.ModuleList(nn.Conv2d(width, 1 + CLASSES + 4, 1) for width in (32, 48))

    def forward(self, images):
        """See the class."""
        shared = self.stem(images)
        answers = []
        for branch, head in zip((self.fine, self.coarse), self.heads, strict=True):
            objectness, classes, boxes = head(branch(shared)).split((1, CLASSES, 4), dim=1)
            answers.append({"objectness": objectness, "classes": classes, "boxes": boxes.sigmoid()})
        return answers


def what_counts(answers: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    """What the search compares: confidence and boxes of both scales, as far as a cell says that something is there."""
    compared = []
    for scale in answers:
        there = scale["objectness"].sigmoid()
        compared += [there * scale["classes"].softmax(1), there * scale["boxes"]]
    return compared


def loss_of(answers: list[dict[str, torch.Tensor]], cells: list[torch.Tensor]) -> torch.Tensor:
    """Losses of objectness everywhere, and of classes and boxes where something is."""
    total = torch.zeros(())
    for answer, target in zip(answers, cells, strict=True):
        there = target[:, 0] > 0
        total = total + 10 * F.binary_cross_entropy_with_logits(answer["objectness"], target[:, :1])
        total = total + F.cross_entropy(answer["classes"].movedim(1, -1)[there], target[:, 1][there].long())
        total = total + F.l1_loss(answer["boxes"].movedim(1, -1)[there], target[:, 2:].movedim(1, -1)[there])
    return total


def trained(steps: int) -> Detector:
    """The network, trained; its weights are kept in runs/."""
    torch.manual_seed(0)
    network, weights = Detector(), Path(f"runs/detector-{steps}.pt")
    if weights.exists():
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for images, cells in DataLoader(Canvases("train", range(50_000), 64 * steps, targets=True), batch_size=64):
        loss = loss_of(network(images), cells)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    weights.parent.mkdir(exist_ok=True)
    torch.save(network.state_dict(), weights)
    return network


def build(steps: int = 800) -> dict:
    """What `amed search --network` asks for."""
    return {
        "network": trained(steps),
        "outputs": what_counts,
        "calibration": Canvases("train", range(50_000, 52_000), 512),
        "search": DataLoader(Canvases("train", range(52_000, 60_000), 3_000), batch_size=64),
        "test": DataLoader(Canvases("t10k", range(10_000), 2_000), batch_size=64),
    }
