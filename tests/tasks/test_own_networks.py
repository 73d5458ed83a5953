"""Networks of every kind that users bring, from `make_task` to a search."""

import numpy as np
import pytest
import small_networks
import torch
from small_networks import shaken
from torch import nn
from torch.nn import functional as F

import amed_env
from amed_env.errors import DataError

SAMPLES = 150
OPTIONS = {"recipe": "nearest"}
"""Options of `make_task` that all tests here share."""


def images(seed):
    return torch.randn(SAMPLES, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def numbers(seed):
    return torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(100 + seed))


@torch.no_grad()
def scores_of(network, inputs):
    return network(*inputs) if isinstance(inputs, tuple) else network(inputs)


def task_of(network, make_inputs=images, **options):
    """A task whose labels are what the float network answers, so that its float accuracy is 1.

    The classifier's bias is set so that all classes occur about equally often.
    """
    classifier = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    classifier.bias.data -= scores_of(network, make_inputs(9)).mean(dim=0)
    parts = {}
    for seed, part in enumerate(("calibration", "search", "test")):
        inputs = make_inputs(seed)
        parts[part] = (inputs, scores_of(network, inputs).argmax(dim=1))
    assert len(parts["search"][1].unique()) >= 3
    return amed_env.make_task(network=network, **parts, **OPTIONS, **options)


def plain(labels, scores):
    return (scores.argmax(dim=1) == labels).double().mean().item(), F.cross_entropy(scores, labels).item()


CASES = {
    "residual": (small_networks.Residual, ("stem", "conv1", "shortcut", "conv2", "head"), ()),
    "concatenating": (small_networks.Concatenating, ("first", "second", "third", "head"), ()),
    "grouped": (small_networks.Grouped, ("stem", "depthwise", "grouped", "multiplied", "head"), ()),
    "linear only": (small_networks.linear_only, ("1", "4", "6"), ()),
    "without norms": (small_networks.without_norms, ("0", "3", "6"), ()),
    "norm before convolution": (small_networks.PreActivation, ("conv1", "conv2", "head"), ("bn1", "bn2", "bn3")),
    "relu6": (lambda: small_networks.activated_by(nn.ReLU6), ("0", "3", "8"), ()),
    "hard-swish": (lambda: small_networks.activated_by(nn.Hardswish), ("0", "3", "8"), ()),
    "leaky": (lambda: small_networks.activated_by(nn.LeakyReLU), ("0", "3", "8"), ()),
    "linear bottleneck": (
        small_networks.LinearBottleneck,
        ("expand", "depthwise", "project", "head", "classifier"),
        (),
    ),
    "squeeze and excitation": (small_networks.SqueezeExcitation, ("conv", "squeeze", "excite", "head"), ()),
    "called twice": (small_networks.CalledTwice, ("stem", "shared", "head"), ()),
    "in place": (small_networks.InPlace, ("conv1", "conv2", "head"), ()),
    "two inputs": (small_networks.TwoInputs, ("conv", "numbers", "head"), ()),
}


def inputs_for(name):
    return (lambda seed: (images(seed), numbers(seed))) if name == "two inputs" else images


@pytest.mark.parametrize("name", CASES)
def test_from_the_task_to_a_search(name):
    make, layers, kept = CASES[name]
    network = shaken(make())
    task = task_of(network, inputs_for(name), budget={"memory": 0.6})
    assert task.workload.layer_names == layers
    assert tuple(line.partition(" ")[0] for line in task.evaluator.kept_float) == kept
    scores = scores_of(network, inputs_for(name)(1))
    accuracy, loss = plain(scores.argmax(dim=1), scores)
    assert task.float_quality.accuracy == accuracy == 1.0
    assert task.float_quality.loss == pytest.approx(loss, rel=1e-4)
    # 16 bits are float but for roundings; 8 bits lose little; 2 bits lose more.
    losses = {bits: task.quality(task.workload.uniform(bits)).loss for bits in (2, 8, 16)}
    assert losses[16] == pytest.approx(loss, rel=5e-3)
    assert task.quality(task.workload.uniform(8)).accuracy >= 0.9  # margins of untrained networks are small
    assert abs(losses[8] - loss) < 0.5 * abs(losses[2] - loss)
    predicted = task.predicted_loss
    assert np.isfinite(predicted).all() and (predicted >= 0).all() and (predicted[:, 0] > predicted[:, -1]).all()
    result = amed_env.make_agent("greedy").search(task, 6)
    assert result.best is not None and not result.faults


def test_kinds_of_grouped_layers():
    task = task_of(shaken(small_networks.Grouped()))
    found = {layer.name: (layer.kind, layer.n, layer.k, layer.groups) for layer in task.workload}
    assert found["depthwise"] == ("depthwise", 1, 9, 8)
    assert found["grouped"] == ("conv", 3, 18, 4)
    assert found["multiplied"] == ("conv", 2, 9, 12)


def test_signed_activations_are_not_clipped_at_zero():
    network = shaken(small_networks.LinearBottleneck())
    task = task_of(network)
    whole = scores_of(network, images(1))
    assert task.quality(task.workload.uniform(8)).accuracy >= 0.95
    network.clipped = True  # the control: had negative values been lost, it would show
    clipped = scores_of(network, images(1))
    assert plain(whole.argmax(dim=1), clipped)[0] < 0.8


@pytest.mark.parametrize("layer", ["stem", "conv2", "head"])
@pytest.mark.parametrize("everything", [False, True], ids=["a channel", "the layer"])
def test_weights_that_are_all_zero(layer, everything):
    network = shaken(small_networks.Residual())
    weight = network.get_submodule(layer).weight.data
    weight[slice(None) if everything else 0] = 0.0
    if everything and layer == "head":
        network.head.bias.data.zero_()
    labels = torch.arange(SAMPLES) % 4
    task = amed_env.make_task(
        network=network, calibration=images(0), search=(images(1), labels), test=(images(2), labels), **OPTIONS
    )
    expected = F.cross_entropy(scores_of(network, images(1)), labels).item()
    for bits in (2, 3, 4, 8):
        assert np.isfinite(task.quality(task.workload.uniform(bits)).loss)
    assert task.quality(task.workload.uniform(16)).loss == pytest.approx(expected, rel=5e-3)
    assert np.isfinite(task.predicted_loss).all()
    assert np.isfinite(task.evaluator.weight_statistics()).all()


def test_a_layer_that_only_ever_reads_zeros():
    network = shaken(small_networks.without_norms())
    network[0].bias.data.fill_(-100.0)  # its ReLU never lets anything through
    labels = torch.arange(SAMPLES) % 4
    task = amed_env.make_task(
        network=network, calibration=images(0), search=(images(1), labels), test=(images(2), labels), **OPTIONS
    )
    expected = F.cross_entropy(scores_of(network, images(1)), labels).item()
    assert task.quality(task.workload.uniform(8)).loss == pytest.approx(expected, rel=0.05)


def test_a_module_that_is_called_twice_keeps_one_range_for_both_calls():
    """The second call reads values that are ten times as large: its range must count."""

    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.shared(10 * self.shared(x)))

    network = Growing()
    network.shared.weight.data.copy_(torch.eye(4))
    inputs = [torch.rand(60, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    labels = [scores_of(network, x).argmax(dim=1) for x in inputs]
    labels = [torch.where(torch.arange(60) < 3, torch.arange(60) % 3, y) for y in labels]
    parts = dict(zip(("calibration", "search", "test"), zip(inputs, labels, strict=True), strict=True))
    task = amed_env.make_task(network=network, **parts, **OPTIONS)
    expected = F.cross_entropy(scores_of(network, inputs[1]), labels[1]).item()
    assert task.quality(task.workload.uniform(8)).loss == pytest.approx(expected, rel=0.05)


def test_several_inputs_come_in_every_form():
    network = shaken(small_networks.TwoInputs())
    task = task_of(network, inputs_for("two inputs"))

    class Pairs(torch.utils.data.Dataset):
        def __init__(self, seed):
            self.inputs = images(seed), numbers(seed)
            self.labels = scores_of(network, self.inputs).argmax(dim=1)

        def __len__(self):
            return SAMPLES

        def __getitem__(self, index):
            return tuple(tensor[index] for tensor in self.inputs), self.labels[index]

    others = [
        {"calibration": (images(0), numbers(0))},
        {"calibration": Pairs(0), "search": Pairs(1), "test": Pairs(2)},
        {"example_input": (images(5)[:2], numbers(5)[:2])},
    ]
    for changes in others:
        parts = {
            part: ((images(seed), numbers(seed)), scores_of(network, (images(seed), numbers(seed))).argmax(dim=1))
            for seed, part in enumerate(("calibration", "search", "test"))
        }
        other = amed_env.make_task(network=network, **{**parts, **changes}, **OPTIONS)
        allocation = task.workload.uniform(4)
        assert other.workload.layers == task.workload.layers
        assert other.quality(allocation) == task.quality(allocation)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": ((images(1), numbers(1)[:-1]), torch.arange(SAMPLES) % 4)}, r"have \[150, 149\] samples"),
        ({"search": ((images(1), numbers(1).double()), torch.arange(SAMPLES) % 4)}, r"torch\.float64"),
        ({"search": ((images(1), numbers(1)[:, :4]), torch.arange(SAMPLES) % 4)}, "search samples have shape"),
        ({"search": (images(1), torch.arange(SAMPLES) % 4)}, "search samples have shape"),
        ({"search": (images(1), numbers(1)), "score": "metric"}, "needs labels, and the search samples have none"),
        ({"example_input": (images(1), numbers(1)[:, :3])}, "example input has shapes"),
        ({"example_input": images(1)}, "example input has shapes"),
    ],
)
def test_several_inputs_that_do_not_fit_are_named(changes, message):
    labels = torch.arange(SAMPLES) % 4
    parts = {
        part: ((images(seed), numbers(seed)), labels) for seed, part in enumerate(("calibration", "search", "test"))
    }
    with pytest.raises(DataError, match=message):
        amed_env.make_task(network=shaken(small_networks.TwoInputs()), **{**parts, **changes}, **OPTIONS)
