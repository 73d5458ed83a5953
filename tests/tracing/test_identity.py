"""What a captured program is found by: everything that can change what runs, and nothing else."""

import os
import random
from collections import OrderedDict
from enum import Enum
from functools import partial

import pytest
import torch
from odd_networks import NETWORKS
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from amed_env.tracing.identity import UnknowableError, identity

SCALE = 2.0
SETTINGS = {"shift": 1.0}


class Mode(Enum):
    PLAIN = 0
    DOUBLED = 1


def helper(x):
    return torch.relu(x) * SCALE


def other_helper(x):
    return torch.relu(x) * SCALE + 1


class Part(nn.Module):
    power = 1

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.mode = Mode.PLAIN
        self.options = OrderedDict(slope=0.1, names=["a", "b"])
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, x):
        x = helper(self.fc(x) + self.shift) ** self.power
        return F.leaky_relu(self.inner(x), self.options["slope"]) + SETTINGS["shift"]

    def inner(self, x):
        return x * 2 if self.mode is Mode.DOUBLED else x


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), Part(), nn.Conv1d(1, 2, 3, padding=1)).eval()


def scaled(factor):
    return lambda module, inputs, outputs: outputs * factor


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def patched_relu(x, inplace=False):
    return torch.nn.functional.silu(x)


def set_attribute(path, name, value):
    def change(given, monkeypatch):
        setattr(given.get_submodule(path), name, value)

    return change


def set_weight(given, monkeypatch):
    with torch.no_grad():
        given[0].weight[0, 0] += 1e-6


def patch(where, value):
    def change(given, monkeypatch):
        monkeypatch.setattr(where, value)

    return change


def replace_forward(given, monkeypatch):
    original = given[0].forward
    given[0].forward = lambda x: original(x) + 1


def add_hook(given, monkeypatch):
    given[0].register_forward_hook(scaled(2))


def add_keyword_hook(given, monkeypatch):
    given[0].register_forward_pre_hook(lambda module, inputs, keywords: (inputs, keywords), with_kwargs=True)


def parametrized(given, monkeypatch):
    parametrize.register_parametrization(given[0], "weight", Doubled())


def tied(given, monkeypatch):
    given[1].fc.weight = given[0].weight


def without_bias(given, monkeypatch):
    given[0].bias = None


def in_half(given, monkeypatch):
    given[0].half()


def renamed(given, monkeypatch):
    given.add_module("last", given[2])
    del given[2]


HERE = __name__
CHANGES = {
    "a weight": set_weight,
    "a buffer": set_attribute("1", "shift", torch.ones(4)),
    "an option of a layer": set_attribute("2", "stride", (2,)),
    "a padding": set_attribute("2", "padding", (0,)),
    "a flag": set_attribute("1", "mode", Mode.DOUBLED),
    "a nested option": set_attribute("1", "options", OrderedDict(slope=0.2, names=["a", "b"])),
    "another attribute": set_attribute("1", "extra", 1),
    "a tensor that is no buffer": set_attribute("1", "extra", torch.ones(2)),
    "the mode": set_attribute("1", "training", True),
    "forward of an instance": replace_forward,
    "forward of a class": patch(f"{HERE}.Part.forward", lambda self, x: self.fc(x)),
    "a method": patch(f"{HERE}.Part.inner", lambda self, x: x * 3),
    "an attribute of a class": patch(f"{HERE}.Part.power", 2),
    "a global number": patch(f"{HERE}.SCALE", 3.0),
    "a global dict": patch(f"{HERE}.SETTINGS", {"shift": 2.0}),
    "a function": patch(f"{HERE}.helper", other_helper),
    "a function of torch": patch("torch.relu", patched_relu),
    "another function of torch": patch("torch.relu", torch.sigmoid),
    "another function of torch's modules": patch("torch.nn.functional.leaky_relu", F.silu),
    "a part of a function": patch("torch.nn.functional.leaky_relu", partial(F.hardtanh, min_val=0.0)),
    "a function of torch's modules": patch("torch.nn.functional.leaky_relu", patched_relu),
    "what a layer of torch calls": patch("torch.nn.functional.conv1d", patched_relu),
    "a layer of torch": patch("torch.nn.Linear.forward", lambda self, x: x @ self.weight.T),
    "a hook": add_hook,
    "a hook with keywords": add_keyword_hook,
    "a parametrization": parametrized,
    "a tied weight": tied,
    "no bias": without_bias,
    "half precision": in_half,
    "a name": renamed,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_counts(change, monkeypatch):
    given = network()
    before = identity(given)
    assert identity(network()) == before
    change(given, monkeypatch)
    assert identity(given) != before


def test_what_a_hook_holds_counts_and_its_number_does_not():
    digests = []
    for factor in (2, 2, 3):
        given = network()
        given[1].register_forward_hook(scaled(factor))
        digests.append(identity(given))
    assert digests[0] == digests[1] != digests[2]


def test_what_no_forward_reads_does_not_count():
    given = network()
    before = identity(given)
    given.register_state_dict_post_hook(lambda *arguments: None)
    assert identity(given) == before


def test_the_settings_of_torch_count(monkeypatch):
    before = identity(network())
    given = network()
    torch.set_default_dtype(torch.float64)
    try:
        assert identity(given) != before
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert identity(given) != before
    assert identity(given) == before


@pytest.mark.parametrize(
    "arguments",
    [
        (lambda returned: returned[0],),
        (lambda returned: returned[1],),
        (partial(max, 1),),
        (partial(max, 2),),
        ({"flag": True},),
        ({"flag": 1},),
        ("name",),
        ((3, 4),),
        ([3, 4],),
        (torch.float32,),
        (torch.zeros(2),),
        (torch.zeros(2, 1),),
        (torch.zeros(2, dtype=torch.int32),),
    ],
    # Not by their text, which has addresses in it: every worker must find the same tests.
    ids=lambda arguments: getattr(arguments[0], "__name__", type(arguments[0]).__name__) if arguments else "none",
)
def test_what_is_said_of_the_call_counts(arguments):
    others = [(), ("nothing",), (torch.ones(2),), (lambda returned: returned,)]
    assert identity(network(), *arguments) not in {identity(network(), *other) for other in others}
    assert identity(network(), *arguments) == identity(network(), *arguments)


def reads_environment(self, x):
    return x if os.environ.get("FLAG") else 2 * x


def imports_something(self, x):
    from odd_networks import rows

    return x + rows(4, 1)


def evaluates(self, x):
    return eval("x * 2")


class Compiled(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.state = state

    def forward(self, x):
        return x


class Hiding:
    def __getstate__(self):
        return None


UNKNOWABLE = {
    "the environment": patch(f"{HERE}.Part.forward", reads_environment),
    "an import": patch(f"{HERE}.Part.forward", imports_something),
    "evaluated text": patch(f"{HERE}.Part.forward", evaluates),
    "a random generator": set_attribute("1", "extra", torch.Generator()),
    "an object of compiled code": set_attribute("1", "extra", random.Random()),
    "an object that hides its state": set_attribute("1", "extra", Hiding()),
    "a generator": set_attribute("1", "extra", (each for each in (1, 2))),
    "a set of objects": set_attribute("1", "extra", {(1, 2)}),
    "a tensor without values": set_attribute("1", "extra", torch.zeros(2, device="meta")),
    "a sparse tensor": set_attribute("1", "extra", torch.eye(3).to_sparse()),
    "a script": set_attribute("1", "extra", torch.jit.script(nn.Linear(2, 2))),
    "a program": set_attribute("1", "extra", torch.fx.symbolic_trace(nn.Linear(2, 2))),
}


@pytest.mark.parametrize("change", UNKNOWABLE.values(), ids=UNKNOWABLE)
def test_what_cannot_be_known_is_refused(change, monkeypatch):
    given = network()
    change(given, monkeypatch)
    with pytest.raises(UnknowableError):
        identity(given)


def test_a_mode_of_torch_is_refused():
    with torch.device("cpu"), pytest.raises(UnknowableError, match="mode"):
        identity(network())


def test_too_many_values_are_refused_and_deep_ones_do_not_end_python(monkeypatch):
    given = network()
    given.extra = list(range(1_100_000))
    with pytest.raises(UnknowableError, match="values"):
        identity(given)
    given.extra = []
    for _ in range(100_000):
        given.extra = [given.extra]
    with pytest.raises(UnknowableError, match="deep"):
        identity(given)
    while given.extra:
        (given.extra,) = given.extra
    monkeypatch.setattr("amed_env.tracing.identity.LARGEST_BYTES", 100)
    with pytest.raises(UnknowableError, match="bytes"):
        identity(given)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_are_made_again_are_equal(name):
    assert identity(NETWORKS[name].make()) == identity(NETWORKS[name].make())


def test_networks_differ():
    assert len({identity(odd.make()) for odd in NETWORKS.values()}) == len(NETWORKS)
