"""Inputs and outputs of every form: tensors, keyword arguments, nested trees, integers, masks, None."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from amed_env import trace
from amed_env.errors import NetworkError
from amed_env.tracing.original import class_scores
from amed_env.tracing.packing import packed_inputs

SAMPLES = 6
Pair = namedtuple("Pair", "left right")


def random(*shape):
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(sum(shape) + 1))


TOKENS = torch.arange(SAMPLES * 5).reshape(SAMPLES, 5) % 11
MASK = TOKENS > 3


class Text(nn.Module):
    """As transformers have it: several keywords, most of them optional."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 3)

    def forward(self, input_ids=None, attention_mask=None, scale=None, squared=False):
        features = self.embedding(input_ids)
        if attention_mask is not None:
            features = features * attention_mask[..., None]
        pooled = features.mean(dim=1)
        if scale is not None:
            pooled = pooled * scale[:, None]
        return self.head(pooled * pooled if squared else pooled)


class Nested(nn.Module):
    """Takes a tree as its only argument."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, batch):
        pair = batch["pair"]
        return self.left(pair[0]) + self.right(pair[1]) + batch["more"][0]["offset"]


class Fields(Nested):
    """Reads the fields of a named tuple."""

    def forward(self, pair):
        return self.left(pair.left) + self.right(pair.right)


NESTED = {"pair": (random(4), random(5)), "more": [{"offset": random(3)}, None]}
CASES = {
    "keywords": (Text, {"input_ids": TOKENS, "attention_mask": MASK}),
    "any mapping": (Text, UserDict({"attention_mask": MASK.long(), "input_ids": TOKENS})),
    "one keyword": (Text, {"input_ids": TOKENS.int()}),
    "one value a sample": (Text, {"input_ids": TOKENS, "scale": random()}),
    "positions, None between": (Text, (TOKENS, None, random())),
    "positions, then keywords": (Text, (TOKENS, {"attention_mask": MASK.float()})),
    "constants": (Text, {"input_ids": TOKENS, "squared": True, "scale": None}),
    "arrays": (Text, (TOKENS.numpy(), MASK.numpy())),
    "a tree": (Nested, NESTED),
    "a tree in a tuple": (Nested, (NESTED,)),
    "a named tuple": (Fields, (Pair(random(4), random(5)),)),
}


def called(network, inputs):
    """The network's answer in float64 to inputs as they were given."""

    def double(value):
        if isinstance(value, np.ndarray):
            value = torch.as_tensor(value)
        if isinstance(value, torch.Tensor):
            return value.double() if value.is_floating_point() else value
        if isinstance(value, dict | UserDict):
            return {key: double(entry) for key, entry in value.items()}
        if isinstance(value, Pair):
            return Pair(*map(double, value))
        return type(value)(map(double, value)) if isinstance(value, tuple | list) else value

    network, inputs = network.double(), double(inputs)
    if isinstance(network, Text) and isinstance(inputs, tuple) and isinstance(inputs[-1], dict):
        return network(*inputs[:-1], **inputs[-1])
    if isinstance(network, Text) and isinstance(inputs, dict):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, tuple) else network(inputs)


@pytest.mark.parametrize("name", CASES)
def test_inputs_reach_the_network_as_they_are(name):
    make, inputs = CASES[name]
    packed = packed_inputs(inputs)[0]
    assert len(packed) == SAMPLES and packed.dim() == 2
    traced = trace(make().eval(), inputs)
    assert traced.batch_size is None
    expected = called(make().eval(), inputs)
    torch.testing.assert_close(traced.module(packed).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(traced.module(packed[2:3]).double(), expected[2:3], rtol=1e-5, atol=1e-5)


def test_integers_alone_are_kept_exactly_and_refused_beside_floats():
    large = torch.tensor([[2**53 + 1], [2**24 + 1]])
    packed, form = packed_inputs((large, large - 1))
    assert packed.dtype == torch.int64 and [part.tolist() for part in form.unpacked(packed)] == [
        large.tolist(),
        (large - 1).tolist(),
    ]
    with pytest.raises(ValueError, match=r"input 'ids' has the integer 9007199254740993, and beyond 2\^24"):
        packed_inputs({"ids": large, "values": torch.zeros(2, 3)})
    exact = torch.tensor([[2**24], [-(2**24)]])
    packed, form = packed_inputs({"ids": exact, "values": torch.zeros(2, 3)})
    assert packed.dtype == torch.float32 and torch.equal(form.unpacked(packed)["ids"], exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("who", ["both", "network", "inputs"])
def test_floats_of_other_sizes(dtype, who):
    torch.manual_seed(2)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    inputs = random(4) if who == "network" else random(4).to(dtype)
    traced = trace(network if who == "inputs" else network.to(dtype), inputs)
    remark = f"{str(dtype).removeprefix('torch.')} is computed in float32"
    assert traced.remarks == (() if who == "inputs" else (remark,))
    expected = network.double()(inputs.double())
    torch.testing.assert_close(traced.module(inputs.float()).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "there is no tensor in this dict; inputs must be a tensor"),
        ({"input_ids": TOKENS, "mask": {1}}, "set at 'mask' is no input of a network; inputs must be"),
        ({"input_ids": TOKENS, "attention_mask": MASK[:4]}, r"have \[4, 6\] samples \(attention_mask, input_ids\)"),
        ({"input_ids": TOKENS.to(torch.complex64)}, "input 'input_ids' is torch.complex64"),
        ({"ids": TOKENS}, "not these parameters but input_ids, attention_mask, scale, squared"),
        ({"input_ids": TOKENS, "scale": random(4)}, r"does not run on inputs input_ids \(6, 5\), scale \(6, 4\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, message):
    with pytest.raises(NetworkError, match=message):
        trace(Text(), inputs)


def test_an_example_is_needed():
    with pytest.raises(NetworkError, match="network 'Text' needs an example input"):
        trace(Text())


class Answers(nn.Module):
    def __init__(self, arrange):
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head, self._arrange = nn.Linear(4, 5), nn.Linear(5, 3), arrange

    def forward(self, values):
        features = torch.relu(self.body(values))
        return self._arrange(features, self.head(features))


@pytest.mark.parametrize(
    ("arrange", "outputs"),
    [
        (lambda features, scores: (scores, None, scores.argmax(1)), class_scores),
        (lambda features, scores: {"hidden": features, "logits": scores}, class_scores),
        (lambda features, scores: Pair([features], {"x": scores}), lambda returned: returned.right["x"]),
    ],
    ids=["the only floats", "logits", "picked"],
)
def test_what_counts_of_the_outputs_is_part_of_the_program(arrange, outputs):
    values = random(4)
    network = Answers(arrange).eval()
    traced = trace(network, values, outputs=outputs)
    expected = network.head(torch.relu(network.body(values)))
    torch.testing.assert_close(traced.module(values), expected)
    everything = trace(network, values).module(values)
    assert isinstance(everything, tuple) and len(everything) == 2


class Cache:
    """An object that pytrees do not know."""

    def __init__(self, values):
        self.values = values


def test_other_objects_among_the_outputs_are_left_out():
    values = random(4)
    network = Answers(lambda features, scores: {"scores": scores, "cache": Cache(features)}).eval()
    torch.testing.assert_close(trace(network, values).module(values), network(values)["scores"])
    with pytest.raises(NetworkError, match="returns no tensor that can be found"):
        trace(Answers(lambda features, scores: Cache(scores)), values)


def test_scores_that_cannot_be_told_from_other_outputs_are_listed():
    network = Answers(lambda features, scores: {"features": features, "more": (scores, scores.argmax(1))})
    with pytest.raises(NetworkError) as caught:
        trace(network, random(4), outputs=class_scores)
    for text in ("'features'", "float32 (6, 5)", "float32 (6, 3)", "int64 (6,)", "outputs=function"):
        assert text in str(caught.value)


def test_tensors_of_dataclasses_are_found():
    @dataclass
    class Found:
        scores: torch.Tensor
        boxes: tuple[torch.Tensor, ...]

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores, self.boxes = nn.Linear(6, 3), nn.Linear(6, 4)

        def forward(self, x):
            return Found(self.scores(x), (self.boxes(x), self.boxes(-x)))

    torch.manual_seed(0)
    network, x = Detector(), torch.rand(4, 6)
    found = trace(network, x).module(x)
    expected = network.scores(x), network.boxes(x), network.boxes(-x)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, expected, strict=True))
