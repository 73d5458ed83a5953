"""Data of a user that do not fit: one line that says what arrived and what fits, and exit code 2."""

import pytest
from typer.testing import CliRunner

from amed_env.cli import app

MODULE = """
import torch
from torch import nn

images, others = torch.rand(2, 40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
labels = torch.arange(40) % 10


def network(classes=10):
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
    return body.eval()


def parts(**changes):
    return {"network": network(), "calibration": images, "search": (others, labels), **changes}


def float_labels():
    return parts(search=(others, labels.float()))


def masks():
    return parts(search=(others, torch.zeros(40, 4, 4).long()))


def sigmoid():
    return parts(network=network(1), search=(others, labels % 2))


def flat_sigmoid():
    return parts(network=nn.Sequential(network(1), nn.Sigmoid(), nn.Flatten(0)).eval(), search=(others, labels % 2))


def one_hot():
    return parts(search=(others, torch.eye(10)[labels]))


def names():
    return parts(search=(others, ["cat"] * 40))


def from_one():
    return parts(search=(others, labels + 1))


def channels_last():
    return parts(calibration=images.permute(0, 2, 3, 1), search=(others.permute(0, 2, 3, 1), labels))


def pixels():
    return parts(calibration=images.mul(255).byte(), search=(others.mul(255).byte(), labels))


def pictures():
    from PIL import Image

    made = [Image.fromarray(image.permute(1, 2, 0).mul(255).byte().numpy()) for image in images]
    return parts(calibration=list(zip(made, labels.tolist())))


def no_function():
    return parts(transform="resize")
"""
CASES = {
    "float_labels": "the labels are float32 of shape (2,), the outputs float32 of shape (2, 10)",
    "masks": "masks (N, H, W) with (N, classes, H, W)",
    "sigmoid": "have one score for all classes; let the network return a score for each class, (-x, x) for one sigmoid",
    "flat_sigmoid": "are one number a sample, but the labels, int64 of shape (2,), class numbers",
    "one_hot": "are one-hot; give class numbers, labels.argmax(1)",
    "names": "they are texts; give the number of each class, from 0",
    "from_one": "tells only 10 classes apart (0 to 9). They seem to count from 1: subtract 1.",
    "channels_last": "These look like images (N, height, width, channels); .permute(0, 3, 1, 2)",
    "pixels": "inputs are torch.uint8, expected torch.float32 or torch.int64",
    "pictures": "it is an image of PIL; return tensors (C, H, W)",
    "no_function": "transform is 'resize'; give a function of a batch of inputs",
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_said_in_a_line(case, tmp_path, monkeypatch):
    if case == "pictures":
        pytest.importorskip("PIL")
    (tmp_path / "own_data.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    command = ["search", "--network", f"own_data:{case}", "--budget", "latency=0.6", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--recipe", "nearest", "--agent", "greedy"])
    assert done.exit_code == 2, done.output
    assert CASES[case] in " ".join(done.output.split())
    assert "Traceback" not in done.output and isinstance(done.exception, SystemExit)
