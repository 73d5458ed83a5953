"""Tasks of networks with keyword inputs and several outputs, as modules and as exported programs."""

import pytest
import torch
from torch import nn
from torch.export import export, save
from torch.nn import functional as F

import amed_env
from amed_env.errors import DataError, InputError, NetworkError

SAMPLES = 50
OPTIONS = {"recipe": "nearest", "device": "bops"}


class Labeller(nn.Module):
    """As a classifier of transformers: tokens and a mask by keyword, a dict with logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(30, 8)
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask=None):
        tokens = self.embedding(input_ids)
        hidden = torch.relu(self.body(tokens))
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        pooled = hidden.mean(dim=1)
        return {"logits": self.head(pooled), "hidden": hidden}


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 30, (SAMPLES, 6), generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.rand(SAMPLES, 6, generator=generator) > 0.3}


def parts_of(seeds=(0, 1, 2)):
    labels = torch.arange(SAMPLES) % 3
    return {
        part: {**batch(seed), "labels": labels}
        for seed, part in zip(seeds, ("calibration", "search", "test"), strict=True)
    }


def loss_of(network, seed):
    labels = torch.arange(SAMPLES) % 3
    inputs = batch(seed)
    with torch.no_grad():
        scores = network.double()(inputs["input_ids"], inputs["attention_mask"].double())["logits"]
    return F.cross_entropy(scores, labels).item()


def test_keyword_inputs_and_logits_among_the_outputs():
    task = amed_env.make_task(network=Labeller().eval(), **parts_of(), **OPTIONS)
    assert task.network == "Labeller" and task.workload.layer_names[-2:] == ("body", "head")
    exact = loss_of(Labeller().eval(), 1)
    assert task.float_quality.loss == pytest.approx(exact, rel=1e-5)
    losses = {bits: task.quality(task.workload.uniform(bits)).loss for bits in (2, 8)}
    assert losses[8] == pytest.approx(exact, rel=0.01) and losses[2] != losses[8]


def few(count):
    return {key: tensor[:count] for key, tensor in batch(5).items()}


def exported(form, network, tmp_path):
    """The network in a form that users give."""
    if form == "module":
        return network
    if form != "file":
        return export(network, (), few(int(form)))
    size = {0: torch.export.Dim("batch", min=1)}
    program = export(network, (), batch(5), dynamic_shapes={"input_ids": size, "attention_mask": size})
    save(program, tmp_path / "labeller.pt2")
    return tmp_path / "labeller.pt2"


# Of 50 samples the last batch of 8 is filled up, in calibration too, whose ranges are then others than without.
@pytest.mark.parametrize(("form", "widths"), [("module", (3, 8)), ("file", (3, 8)), ("10", (3, 8)), ("8", (32,))])
def test_the_same_task_of_every_form_of_the_network(tmp_path, form, widths):
    network = Labeller().eval()
    task = amed_env.make_task(network=exported(form, network, tmp_path), **parts_of(), **OPTIONS)
    expected = amed_env.make_task("other", network=network, **parts_of(), **OPTIONS)
    assert task.workload.layers == expected.workload.layers
    for bits in widths:
        found = task.quality(task.workload.uniform(bits))
        wanted = expected.quality(expected.workload.uniform(bits))
        assert found.correct == wanted.correct and found.loss == pytest.approx(wanted.loss, rel=1e-5)


class Two(Labeller):
    def forward(self, input_ids, attention_mask=None):
        returned = super().forward(input_ids, attention_mask)
        return [returned["hidden"], (returned["logits"], 2 * returned["logits"])]


def test_outputs_picks_what_is_scored():
    task = amed_env.make_task(network=Two().eval(), outputs=lambda returned: returned[1][0], **parts_of(), **OPTIONS)
    assert task.float_quality.loss == pytest.approx(loss_of(Labeller().eval(), 1), rel=1e-5)
    with pytest.raises(NetworkError, match=r"float32 \(1, 6, 8\), .*float32 \(1, 3\), .* outputs=function"):
        amed_env.make_task(network=Two().eval(), **parts_of(), **OPTIONS)


def test_an_example_of_other_inputs_is_named():
    with pytest.raises(DataError, match=r"shapes 0 \(6,\) torch.int64, .* calibration samples attention_mask \(6,\)"):
        example = tuple(batch(4).values())
        amed_env.make_task(network=Labeller(), example_input=example, **parts_of(), **OPTIONS)
    parts = parts_of()
    parts["test"] = {key: value for key, value in parts["test"].items() if key != "attention_mask"}
    with pytest.raises(
        DataError, match=r"test samples have shape input_ids \(6,\) .* but .*attention_mask \(6,\) torch.bool"
    ):
        amed_env.make_task(network=Labeller(), **parts, **OPTIONS)


def test_outputs_belong_to_a_network_of_ones_own():
    with pytest.raises(InputError, match="outputs is given without a network"):
        amed_env.make_task("digits-cnn", outputs=lambda returned: returned)
