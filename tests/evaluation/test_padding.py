"""Sequences of different lengths: what padding adds counts nowhere, so each scores as it does alone."""

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import amed_env
from amed_env.datasets import streaming
from amed_env.datasets.forms import as_samples
from amed_env.errors import DataError

WORDS = 11


class Tagger(nn.Module):
    """Scores for every token, of itself and of the mean of all tokens that count."""

    def __init__(self, per_token=True):
        super().__init__()
        torch.manual_seed(0)
        self.per_token = per_token
        self.embedding, self.body, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, 8), nn.Linear(8, WORDS)
        for parameter in self.parameters():
            parameter.data.normal_()

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        hidden = torch.relu(self.body(self.embedding(input_ids)))
        mean = (hidden * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        logits = self.head(hidden + mean)
        return logits if self.per_token else logits[:, 0]


def sentences(seed, count, longest):
    """Items as data sets of transformers have them, each of its own length."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for number in range(count):
        length = 4 + (number * 5 + seed) % (longest - 3)
        ids = torch.randint(1, WORDS, (length,), generator=generator)
        labels = torch.randint(0, WORDS, (length,), generator=generator)
        items.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return items


class Sentences(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def to_the_longest(items, pad_id=7, label=-100):
    """What collate functions of transformers do: a batch is as long as its longest."""
    longest = max(len(item["input_ids"]) for item in items)
    fills = {"input_ids": pad_id, "attention_mask": 0, "labels": label}
    return {
        name: torch.stack([nn.functional.pad(item[name], (0, longest - len(item[name])), value=fill) for item in items])
        for name, fill in fills.items()
    }


def loader(items):
    return DataLoader(Sentences(items), batch_size=4, collate_fn=to_the_longest)


def labelled_padding(items):
    """A loader whose labels count padding, as those that are copies of the tokens do."""
    return DataLoader(Sentences(items), 4, collate_fn=lambda batch: to_the_longest(batch, label=3))


FORMS = {"items": Sentences, "loader": loader, "labels at padding": labelled_padding}
CALIBRATION, SEARCH, TEST = sentences(1, 20, 6), sentences(2, 23, 9), sentences(3, 21, 8)


def task_of(form, **options):
    return amed_env.make_task(
        network=Tagger().eval(),
        calibration=form(CALIBRATION),
        search=form(SEARCH),
        test=form(TEST),
        recipe="nearest",
        device="bops",
        threads=1,
        **options,
    )


def alone(task, items, bits):
    """What the task's network returns for every sequence alone, without any padding."""
    network = task.evaluator.network
    network.select(task.workload.uniform(bits))
    form = task.evaluator.samples("search").form
    outputs = []
    for item in items:
        length = len(item["input_ids"])
        given = {name: torch.zeros(1, form.shapes[0][0], dtype=torch.int64) for name in form.names}
        for name in form.names:
            given[name][0, :length] = item[name]
        packed = torch.cat([given[name] for name in form.names], dim=1)
        outputs.append(network(packed)[0, :length].double())
    return outputs


def divergence(truth, found):
    p, q = torch.softmax(truth, dim=-1).numpy(), torch.softmax(found, dim=-1).numpy()
    return float((p * (np.log(p) - np.log(q))).sum(axis=-1).mean())


@pytest.mark.parametrize("form", FORMS)
def test_every_sequence_scores_as_it_does_alone(form, caplog):
    with caplog.at_level(logging.INFO):
        task = task_of(FORMS[form])
    assert "sequences of all samples are padded to the longest, 9" in caplog.text
    for split, items in (("search", SEARCH), ("test", TEST)):
        order = range(len(items))
        if split == "search":  # drawn in another order
            order = amed_env.datasets.samples.drawn_order(len(items), "amed/search/1")
        items = [items[number] for number in order]
        quality = task.quality(task.workload.uniform(3), split)
        expected = [divergence(*pair) for pair in zip(alone(task, items, 32), alone(task, items, 3), strict=True)]
        assert quality.per_sample["divergence"] == pytest.approx(expected, rel=1e-4)
        assert quality.score == pytest.approx(np.mean(expected), rel=1e-6)
        many = task.evaluator.evaluate_many([task.workload.uniform(bits) for bits in (2, 3)], split)[1]
        assert many.score == pytest.approx(quality.score, rel=1e-6)
        # The float network itself, on unpadded sequences of their own lengths.
        network = Tagger().eval()
        losses = []
        for item in items:
            scores = network(item["input_ids"][None], item["attention_mask"][None])[0]
            losses.append(nn.functional.cross_entropy(scores, item["labels"], reduction="none"))
        perplexity = float(torch.cat(losses).mean().exp())
        exact = task.quality(task.workload.uniform(32), split)
        assert exact.metrics["perplexity"] == pytest.approx(perplexity, rel=1e-5)


def test_proxies_leave_padding_out():
    """The proxy of a layer is the divergence of the calibration sequences when that layer alone is narrowed."""
    task = task_of(Sentences)
    base = task.workload.uniform(8)
    network = task.evaluator.network
    measured = task.evaluator.predicted_loss(task.precisions)
    names = task.workload.layer_names
    for row, name in enumerate(names):
        outputs = []
        for allocation in (base, base.replace({name: task.precisions[0]})):
            network.select(allocation)
            samples = task.evaluator.samples("calibration")
            returned = network(samples.inputs)
            lengths = [len(item["input_ids"]) for item in CALIBRATION]
            outputs.append([rows[:length].double() for rows, length in zip(returned, lengths, strict=True)])
        expected = np.mean([divergence(*pair) for pair in zip(*outputs, strict=True)])
        assert measured[row, 0] == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_streamed_sequences_are_the_same(monkeypatch):
    expected = as_samples(loader(SEARCH), "search")
    monkeypatch.setattr(streaming, "IN_MEMORY_MIB", 1 / 1024)
    samples = as_samples(loader(SEARCH), "search", in_memory=False)
    assert samples.streamed and samples.fingerprint() == expected.fingerprint()
    longer = streaming.lengthened(samples, 12, frozenset(("input_ids", "attention_mask")))
    kept = streaming.lengthened(expected, 12, frozenset(("input_ids", "attention_mask")))
    assert longer.streamed and longer.fingerprint() == kept.fingerprint()
    assert longer.sample_hashes() == kept.sample_hashes() and longer.form == kept.form


def without_mask(items):
    return Sentences([{name: item[name] for name in ("input_ids", "labels")} for item in items])


def test_without_a_mask_padding_is_refused():
    with pytest.raises(DataError, match=r"padding would change what the network answers, .* with an 'attention_mask'"):
        as_samples(without_mask(SEARCH), "search")


def test_values_at_padding_would_count():
    items = [{**item, "labels": item["labels"].float()} for item in SEARCH]
    with pytest.raises(DataError, match=r"labels that are values, .* cannot be padded from length \d to 9"):
        as_samples(Sentences(items), "search")
