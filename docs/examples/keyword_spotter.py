"""A keyword spotter: a GRU over recordings of different lengths; macro F1.

MLPerf Tiny's 1,000 keyword samples, 49 frames of 10 features each; silence at the end of a recording is cut off, so
that each has its own length. Items are dicts with an attention mask and a label, of which a DataLoader makes batches;
they are padded to the longest. From the repository's root, with AMED_DATA_DIR set to the folder that has
kws_mlperf_tiny_1000.npz (docs/tasks.md says how to make it; training takes a minute, once):

    amed search --network docs.examples.keyword_spotter:build --budget memory=0.4 -n 40 --tune-steps 50 --out runs/gru

The network of the benchmark itself is a task of the package:

    amed search kws-dscnn --metric macro-f1 --budget memory=0.4 -n 40 --out runs/kws
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

FRAMES, FEATURES, CLASSES, LEAST = 49, 10, 12, 16


class Recordings(Dataset):
    """Recordings as dicts: `frames` float32 (T, 10), `attention_mask` int64 (T,), and `labels`, the keyword's number.

    Args:
        first: First of them in a fixed random order.
        count: How many.
    """

    def __init__(self, first: int, count: int):
        file = np.load(Path(os.environ["AMED_DATA_DIR"], "kws_mlperf_tiny_1000.npz"))
        # Six recordings are in the file twice; of copies the first is kept, so that none is in two parts.
        kept = np.sort(np.unique(file["x"], axis=0, return_index=True)[1])
        chosen = np.random.default_rng(0).permutation(kept)[first : first + count]
        values = (file["x"][chosen].astype(np.float32) - file["zero"]) * file["scale"] / 32
        self.frames, self.labels = values.reshape(-1, FRAMES, FEATURES), file["y"][chosen]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        frames = self.frames[index]
        loud = np.nonzero(frames[:, 0] > frames[:, 0].mean())[0]  # the first feature is how loud a frame is
        frames = frames[: max(LEAST, loud[-1] + 4)]
        return {"frames": frames, "attention_mask": np.ones(len(frames), np.int64), "labels": int(self.labels[index])}


class Spotter(nn.Module):
    """A convolution that halves the frames, a GRU, and its mean state over those that count; (N, 12)."""

    def __init__(self):
        super().__init__()
        self.front = nn.Conv1d(FEATURES, 48, 5, stride=2, padding=2)
        self.recurrent, self.classes = nn.GRU(48, 64, batch_first=True), nn.Linear(64, CLASSES)

    def forward(self, frames, attention_mask):
        """Class scores."""
        counting = attention_mask[:, :, None].to(frames.dtype)
        states, _ = self.recurrent(F.relu(self.front((frames * counting).mT)).mT)
        counting = counting[:, ::2]
        return self.classes((states * counting).sum(1) / counting.sum(1))


def trained(steps: int) -> Spotter:
    """The network, trained; its weights are kept in runs/."""
    torch.manual_seed(0)
    network, weights = Spotter(), Path(f"runs/keyword-{steps}.pt")
    if weights.exists():
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network
    recordings = Recordings(0, 550)
    items = [recordings[index] for index in range(550)]
    frames = torch.stack(
        [F.pad(torch.from_numpy(item["frames"]), (0, 0, 0, FRAMES - len(item["frames"]))) for item in items]
    )
    masks = (torch.arange(FRAMES) < torch.tensor([len(item["frames"]) for item in items])[:, None]).long()
    labels = torch.tensor([item["labels"] for item in items])
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for _ in range(steps):
        batch = torch.randint(len(labels), (64,))
        noisy = frames[batch] + 0.1 * torch.randn(64, FRAMES, FEATURES)
        loss = F.cross_entropy(network(noisy, masks[batch]), labels[batch], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    weights.parent.mkdir(exist_ok=True)
    torch.save(network.state_dict(), weights)
    return network


def build(steps: int = 600) -> dict:
    """What `amed search --network` asks for."""
    return {
        "network": trained(steps),
        "training": Recordings(0, 550),
        "calibration": Recordings(0, 200),
        "search": Recordings(550, 220),
        "test": Recordings(770, 224),
        "metrics": ["macro-f1"],
    }
