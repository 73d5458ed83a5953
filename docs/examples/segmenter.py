"""A segmenter: a small UNet that says of every pixel which kind of garment it shows; mean IoU.

Two garments of Fashion-MNIST lie on a canvas of 40 x 40; a garment's pixels are those that are not black. Training,
calibration and search take them from the training file, test from the test file. From the repository's root, with
AMED_DATA_DIR set (`amed fetch fashion-cnn` brings the images; training takes a minute, once):

    amed search --network docs.examples.segmenter:build --agent milp --budget latency=0.35 -n 40 --out runs/segmenter
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

SIZE, CLASSES = 40, 5  # background, tops and dresses, trousers, shoes, bags
KINDS = np.array([1, 2, 1, 1, 1, 3, 1, 3, 4, 3], dtype=np.uint8)  # of the ten classes of Fashion-MNIST


class Garments(Dataset):
    """Canvases with two garments each: uint8 (1, 40, 40), and masks uint8 (40, 40) of class numbers.

    Args:
        kind: File of Fashion-MNIST: `train` or `t10k`.
        garments: The garments of that file which may be used.
        count: How many canvases.
    """

    def __init__(self, kind: str, garments: range, count: int):
        folder = Path(os.environ["AMED_DATA_DIR"], "FashionMNIST/raw")
        images = np.fromfile(folder / f"{kind}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 28, 28)
        labels = np.fromfile(folder / f"{kind}-labels-idx1-ubyte", np.uint8)[8:]
        self.images, self.kinds, self.count = images[garments], KINDS[labels[garments]], count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = np.random.default_rng(index)  # the same canvas whenever it is read
        canvas, mask = np.zeros((2, SIZE, SIZE), dtype=np.uint8)
        for garment in random.integers(len(self.images), size=2):
            y, x = random.integers(SIZE - 28 + 1, size=2)
            seen = self.images[garment] > 0
            canvas[y : y + 28, x : x + 28][seen] = self.images[garment][seen]
            mask[y : y + 28, x : x + 28][seen] = self.kinds[garment]
        return torch.from_numpy(canvas)[None], torch.from_numpy(mask)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions with their norms."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Three resolutions; images (N, 1, 40, 40) in 0..1 to class scores (N, 5, 40, 40)."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = block(1, 8), block(8, 16), block(16, 32)
        self.widen2, self.widen1 = nn.ConvTranspose2d(32, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.up2, self.up1, self.head = block(32, 16), block(16, 8), nn.Conv2d(8, CLASSES, 1)

    def forward(self, images):
        """See the class."""
        fine = self.down1(images)
        middle = self.down2(F.max_pool2d(fine, 2))
        coarse = self.bottom(F.max_pool2d(middle, 2))
        middle = self.up2(torch.cat([middle, self.widen2(coarse)], 1))
        return self.head(self.up1(torch.cat([fine, self.widen1(middle)], 1)))


def scaled(images: torch.Tensor) -> torch.Tensor:
    """Bytes to 0..1."""
    return images.float() / 255


def trained(steps: int) -> UNet:
    """The network, trained; its weights are kept in runs/."""
    torch.manual_seed(0)
    network, weights = UNet(), Path(f"runs/segmenter-{steps}.pt")
    if weights.exists():
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for images, masks in DataLoader(Garments("train", range(48_000), 32 * steps), batch_size=32):
        loss = F.cross_entropy(network(scaled(images)), masks.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    weights.parent.mkdir(exist_ok=True)
    torch.save(network.state_dict(), weights)
    return network


def build(steps: int = 700) -> dict:
    """What `amed search --network` asks for."""
    return {
        "network": trained(steps),
        "calibration": Garments("train", range(48_000, 50_000), 512),
        "search": DataLoader(Garments("train", range(50_000, 60_000), 2_000), batch_size=64),
        "test": DataLoader(Garments("t10k", range(10_000), 2_000), batch_size=64),
        "transform": scaled,
        "metrics": ["mean-iou"],
    }
