import sys

import pytest
import torch

OWN = """
import torch
from torch import nn


class Signed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2)
        self.shared = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.slope = nn.PReLU(4)
        self.head = nn.Linear(4, 2)
        self.unused = nn.Linear(3, 3)

    def forward(self, inputs):
        out = self.slope(self.stem(inputs))
        out = self.shared(self.shared(out))
        return self.head(torch.relu(out).mean(dim=(2, 3)))


def make():
    torch.manual_seed(0)
    return {"network": Signed(), "calibration": torch.rand(20, 1, 9, 11)}


def masked():
    # Calibration samples with masks, and two outputs that count.
    images, masks = torch.rand(20, 1, 9, 11), torch.zeros(20, 9, 11).long()
    return {"network": Signed(), "calibration": (images, masks), "outputs": lambda scores: (scores, 2 * scores)}


def bare():
    return {"network": Signed(), "example_input": torch.zeros(1, 1, 9, 11), "name": "bare"}


def several():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, first, second):
            return self.left(first) + self.right(second)

    torch.manual_seed(0)
    return {"network": Two(), "calibration": (torch.rand(9, 3), torch.randn(9, 4))}
"""


@pytest.fixture
def own(tmp_path, amed):
    (tmp_path / "inspected.py").write_text(OWN)
    yield "inspected"
    import sys

    sys.modules.pop("inspected", None)


def test_layers_of_an_own_network_by_hand(amed, own):
    document = amed("inspect", "--network", f"{own}:make", "--json").json
    stem, shared, head = document["layers"]
    assert (stem["name"], stem["kind"], stem["input_shape"], stem["output_shape"]) == (
        "stem",
        "conv",
        [1, 9, 11],
        [4, 4, 5],
    )
    assert (stem["kernel"], stem["stride"], stem["groups"], stem["calls"]) == ([3, 3], [2, 2], 1, 1)
    assert (stem["macs"], stem["weights"], stem["signed_activations"]) == (20 * 36, 36, False)
    assert (shared["kind"], shared["calls"], shared["groups"]) == ("depthwise", 2, 4)
    assert (shared["macs"], shared["weights"], shared["signed_activations"]) == (2 * 20 * 36, 36, True)
    assert (head["input_shape"], head["macs"], head["signed_activations"]) == ([4], 8, False)
    assert (document["macs"], document["weights"]) == (720 + 1440 + 8, 36 + 36 + 8)
    kept = {entry["name"]: (entry["type"], entry["reason"]) for entry in document["kept_float"]}
    assert kept["slope"][0] == "PReLU" and "not quantized" in kept["slope"][1]
    assert "does not run" in kept["unused"][1]


def test_samples_with_masks_and_several_outputs(amed, own):
    document = amed("inspect", "--network", f"{own}:masked", "--bits", "4", "--json").json
    assert document["signs_from_samples"] == 20 and document["layers"][0]["input_shape"] == [1, 9, 11]
    assert 0 < document["errors"]["4"] < 1


def test_signs_are_unknown_without_samples(amed, own):
    document = amed("inspect", "--network", f"{own}:bare", "--json").json
    assert document["network"] == "bare" and document["signs_from_samples"] is None
    assert [layer["signed_activations"] for layer in document["layers"]] == [None] * 3
    answer = amed("inspect", "--network", f"{own}:bare")
    assert "not known without calibration samples" in answer.out
    assert "slope" in answer.out and "PReLU" in answer.out


def test_a_network_of_several_inputs(amed, own):
    layers = amed("inspect", "--network", f"{own}:several", "--json").json["layers"]
    assert [(layer["name"], layer["input_shape"], layer["signed_activations"]) for layer in layers] == [
        ("left", [3], False),
        ("right", [4], True),
    ]


def test_named_tasks_with_and_without_their_data(amed, tmp_path, monkeypatch):
    answer = amed("inspect", "digits-cnn")
    assert answer.code == 0 and "block1.conv1" in answer.out and "depthwise" in answer.out
    assert "Every module with weights is quantized" in answer.out
    monkeypatch.setenv("AMED_DATA_DIR", str(tmp_path))
    layers = amed("inspect", "cifar10-resnet20", "--json").json["layers"]
    assert len(layers) == 20 and {layer["signed_activations"] for layer in layers} == {None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "neither is"), (["digits-cnn", "--network", "a:b"], "both are"), (["digit-cnn"], "'digits-cnn'")],
)
def test_wrong_arguments(amed, arguments, message):
    answer = amed("inspect", *arguments)
    assert answer.code == 2 and message in answer.err


def test_layers_without_an_integer_kernel_are_listed_with_the_reason(amed, own, tmp_path):
    (tmp_path / "uneven.py").write_text(
        "from torch import nn, rand\n"
        "def make():\n"
        "    network = nn.Sequential(\n"
        "        nn.Conv2d(1, 4, 2, padding='same'), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2),\n"
        "    )\n"
        "    return {'network': network, 'calibration': rand(20, 1, 4, 4)}\n"
    )
    found = amed("inspect", "--network", "uneven:make", "--json").json["without_integer_kernel"]
    if len(found) == 3:  # this machine has no integer kernels at all
        assert len(set(found.values())) == 1
    else:
        assert found == {"0": "padding 'same' that is not the same on both sides"}
    text = " ".join(amed("inspect", "--network", "uneven:make").out.split())
    assert "fake quantization in float" in text


def test_a_network_that_runs_on_integers_says_so(amed):
    text = " ".join(amed("inspect", "digits-cnn").out.split())
    assert "every layer is evaluated" in text.lower()


def test_the_error_of_the_outputs_at_each_width(amed):
    errors = amed("inspect", "digits-cnn", "--bits", "2,4,8", "--json").json["errors"]
    assert list(errors) == ["2", "4", "8"] and errors["2"] > errors["4"] > errors["8"] > 0
    text = " ".join(amed("inspect", "digits-cnn", "--bits", "4").out.split())
    assert "Error of the outputs with one width in all layers" in text
    assert "What was captured computes what the network does" in text


PROGRAM = """
import torch
from torch import nn


class Answers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, values, mask=None):
        hidden = torch.relu(self.body(values))
        return {"hidden": hidden if mask is None else hidden * mask, "answer": self.head(hidden)}


def values(seed):
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(seed))
    return {"values": inputs, "mask": inputs[:, :1] > 0, "labels": torch.arange(40) % 3}


def search():
    parts = {part: values(seed) for seed, part in enumerate(("calibration", "search", "test"))}
    return {"network": "answers.pt2", "outputs": lambda returned: returned["answer"], **parts}
"""


@pytest.fixture
def program(tmp_path):
    """A folder with a module of a network, `answers.py`, and the program that it was exported to, `answers.pt2`."""
    (tmp_path / "answers.py").write_text(PROGRAM)
    scope = {}
    exec(PROGRAM, scope)
    inputs = {key: value[:8] for key, value in scope["values"](7).items() if key != "labels"}
    torch.export.save(torch.export.export(scope["Answers"]().eval(), (), inputs), tmp_path / "answers.pt2")
    yield "answers"
    sys.modules.pop("answers", None)


def test_a_program_is_inspected_alone_and_searched_with_data(amed, program):
    document = amed("inspect", "--network", "answers.pt2", "--bits", "4,8", "--json").json
    assert document["network"] == "answers" and document["batch_size"] == 8
    assert [layer["name"] for layer in document["layers"]] == ["body", "head"]
    assert document["signs_from_samples"] is None and document["difference"] < 1e-5
    assert document["errors"]["8"] < 0.02 < document["errors"]["4"] < 0.5
    assert [layer["name"] for layer in amed("inspect", "--network", "answers:search", "--json").json["layers"]] == [
        "body",
        "head",
    ]
    answer = amed("evaluate", "--network", "answers.pt2", "--bits", 8)
    assert answer.code != 0 and "package.module:function that returns them beside the network" in answer.err
    assert "head" in amed("simulate", "--network", "answers.pt2", "--bits", 8).out
    options = (
        "--recipe",
        "nearest",
        "--agent",
        "uniform",
        "--evaluations",
        3,
        "--budget",
        "memory=0.6",
        "--out",
        "run",
    )
    answer = amed("search", "--network", "answers:search", *options, "--out", "run", "--json")
    assert answer.code == 0, answer.err
