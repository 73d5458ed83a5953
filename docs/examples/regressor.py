"""A regressor: by how many degrees a handwritten digit is turned; mean absolute error.

Scikit-learn's digits, each turned at random by up to 60 degrees; numpy arrays with float labels. No digit is in two
parts. From the repository's root (needs no data; training takes a minute, once):

    amed search --network docs.examples.regressor:build --agent evolution --budget memory=0.4 -n 50 --out runs/regressor
"""

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import rotate, zoom
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

DEGREES = 60.0


def turned(digits: range, times: int) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 (N, 1, 16, 16) in 0..1, and the degrees float32 (N,) by which they are turned.

    Args:
        digits: Which of the 1,797 digits, in a fixed random order.
        times: How often each of them is turned.
    """
    order = np.random.default_rng(0).permutation(1_797)
    enlarged = [zoom(image / 16, 2, order=1) for image in load_digits().images[order[digits]]]
    upright = np.repeat(enlarged, times, axis=0)
    angles = np.random.default_rng(digits.start).uniform(-DEGREES, DEGREES, len(upright)).astype(np.float32)
    images = []
    for image, angle in zip(upright, angles, strict=True):
        images.append(rotate(image, angle, reshape=False, order=1))
    return np.stack(images).astype(np.float32)[:, None], angles


class Angle(nn.Module):
    """Depthwise and pointwise convolutions; images (N, 1, 16, 16) to degrees (N, 1)."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        for inputs, outputs, stride in ((16, 32, 2), (32, 32, 1), (32, 64, 2)):
            layers += [nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs)]
            layers += [nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.hidden, self.angle = nn.Linear(64 * 16, 32), nn.Linear(32, 1)

    def forward(self, images):
        """See the class."""
        return DEGREES * self.angle(F.relu(self.hidden(self.layers(images))))


def trained(steps: int) -> Angle:
    """The network, trained; its weights are kept in runs/."""
    torch.manual_seed(0)
    network, weights = Angle(), Path(f"runs/regressor-{steps}.pt")
    if weights.exists():
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network
    images, angles = map(torch.from_numpy, turned(range(1_000), 10))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for _ in range(steps):
        batch = torch.randint(len(images), (128,))
        loss = F.smooth_l1_loss(network(images[batch])[:, 0] / DEGREES, angles[batch] / DEGREES, beta=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    weights.parent.mkdir(exist_ok=True)
    torch.save(network.state_dict(), weights)
    return network


def build(steps: int = 2_000) -> dict:
    """What `amed search --network` asks for."""
    return {
        "network": trained(steps),
        "calibration": turned(range(1_000, 1_100), 5),
        "search": turned(range(1_100, 1_400), 5),
        "test": turned(range(1_400, 1_797), 5),
    }
