import numpy as np
import pytest
import torch

from amed_env.datasets import Samples
from amed_env.datasets.forms import as_samples
from amed_env.errors import DataError


class Items(list):
    """A data set that is no pair, however few items it has."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        if item == "broken":
            raise OSError("no such image")
        return item


ONE = (torch.zeros(3), 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(0, 3), "no samples"),
        ((torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)), "no samples"),
        ((), "are empty"),
        ((torch.zeros(2, 3), ["cat", "dog"]), "labels of the search samples cannot be made a tensor"),
        (([[1.0], [1.0, 2.0]], [0, 1]), "inputs of the search samples cannot be made a tensor"),
        (
            (torch.zeros(2, 3, dtype=torch.uint8), [0, 1]),
            r"inputs are torch.uint8, expected torch.float32 or torch.int64; .*float\(\)",
        ),
        ((np.zeros((2, 3), np.complex64), [0, 1]), "inputs are torch.complex64"),
        ((torch.zeros(2, 3), [0, 1, 1]), "2 inputs but 3 labels"),
        ((torch.zeros(2, 3), [0.5, float("nan")]), "labels are NaN or infinite"),
        ((torch.zeros(2, 3), [[1, 0], [0, -1]]), "negative, at index 1; .* mark what does not count with -100"),
        ((torch.full((2, 3), float("inf")), [0, 1]), "NaN or infinite"),
        (Items([ONE, ONE, "broken"]), "item 2 of the search data set fails: OSError: no such image"),
        (Items([ONE, torch.zeros(3), ONE]), r"\(input, label\) pairs; item 1 is Tensor"),
        (Items([ONE, ONE, (torch.zeros(3), "cat")]), "item 2 of the search data set has the label 'cat'"),
        (Items([ONE, ONE, (torch.zeros(3), torch.tensor([0, 1]))]), r"labels of the shapes \[\(\), \(2,\)\]"),
        (Items([ONE, ONE, (torch.zeros(4), 0)]), r"inputs of the shapes \[\(3,\), \(4,\)\]"),
        (Items([ONE, ONE, ("image.png", 0)]), "an input of the search data set cannot be made a tensor"),
        (3, "the search samples are int"),
        ("images", r"must yield \(input, label\) pairs"),
    ],
)
def test_what_cannot_be_used_is_named(given, message):
    with pytest.raises(DataError, match=message):
        as_samples(given, "search", labelled=isinstance(given, Items) or not isinstance(given, torch.Tensor))


def test_forms_that_mean_the_same():
    inputs = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0, 1])
    forms = [
        (inputs, labels),
        (inputs, [2, 0, 1]),
        (inputs.numpy(), labels.numpy()),
        Items(zip(inputs, labels, strict=True)),
        torch.utils.data.TensorDataset(inputs, labels),
        Samples(inputs, labels),
    ]
    prints = {as_samples(form, "search").fingerprint() for form in forms}
    assert len(prints) == 1
    assert as_samples(inputs, "calibration", labelled=False).labels is None
    # What was learned from the same samples by versions that filled in zeros is still found.
    zeros = as_samples((inputs, [0, 0, 0]), "calibration")
    assert as_samples(inputs, "calibration", labelled=False).fingerprint() == zeros.fingerprint()


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(3, 4, 4, dtype=torch.int64),
        torch.rand(3),
        torch.rand(3, 2),
        np.zeros(3),
        np.zeros(3, dtype=np.uint8),
    ],
    ids=["masks", "values", "several-values", "float64", "uint8"],
)
def test_labels_of_other_forms(labels):
    samples = as_samples((torch.rand(3, 1, 4, 4), labels), "search", labelled=None, one_input=True)
    whole = labels.dtype in (torch.int64, np.uint8)
    assert samples.labels.dtype == (torch.int64 if whole else torch.float32) and samples.labels.shape == labels.shape
    items = Items(zip(torch.rand(3, 1, 4, 4), labels, strict=True))
    assert as_samples(items, "search").labels.shape == labels.shape


def test_two_tensors_are_inputs_and_labels_where_the_network_takes_one():
    first, second = torch.rand(3, 2), torch.rand(3, 2)
    assert as_samples((first, second), "search", labelled=None, one_input=True).labels is not None
    both = as_samples((first, second), "search", labelled=None)
    assert both.labels is None and both.form.shapes == ((2,), (2,))


def test_several_inputs_are_packed_and_given_back():
    first, second = torch.rand(5, 2, 3), torch.rand(5, 4)
    samples = as_samples(((first, second), [0, 1, 0, 1, 0]), "search")
    assert samples.inputs.shape == (5, 10) and samples.form.shapes == ((2, 3), (4,))
    found = samples.subset([3]).example()
    assert torch.equal(found[0], first[3:4]) and torch.equal(found[1], second[3:4])
    other = as_samples(((first.reshape(5, 6), second), [0, 1, 0, 1, 0]), "search")
    assert torch.equal(other.inputs, samples.inputs) and other.fingerprint() != samples.fingerprint()


IDS = torch.arange(12).reshape(6, 2)
MASK = IDS > 4
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


DICTS = [{"ids": ids, "mask": mask, "labels": label} for ids, mask, label in zip(IDS, MASK, LABELS, strict=True)]
PAIRS = [({"ids": ids, "mask": mask}, int(label)) for ids, mask, label in zip(IDS, MASK, LABELS, strict=True)]
LISTS = [
    {"ids": ids.tolist(), "mask": mask.tolist(), "label": int(label)}
    for ids, mask, label in zip(IDS, MASK, LABELS, strict=True)
]


@pytest.mark.parametrize(
    "form",
    [
        {"ids": IDS, "mask": MASK, "labels": LABELS},
        {"mask": MASK.numpy(), "label": LABELS.tolist(), "ids": IDS.numpy()},
        ({"ids": IDS, "mask": MASK}, LABELS),
        Items(DICTS),
        DICTS,
        Items(PAIRS),
        Items(LISTS),
        Stream(DICTS),
        torch.utils.data.DataLoader(Items(DICTS), batch_size=4),
        torch.utils.data.DataLoader(Items(PAIRS), batch_size=4),
    ],
    ids=[
        "a dict",
        "a dict of arrays",
        "a dict and labels",
        "items",
        "a list",
        "pairs",
        "lists",
        "stream",
        "loader",
        "loader of pairs",
    ],
)
def test_dicts_of_inputs_come_in_every_form(form):
    for labelled in (True, False):
        samples = as_samples(form, "search", labelled=labelled)
        assert samples.form.names == ("ids", "mask")
        inputs = samples.form.unpacked(samples.inputs)
        assert torch.equal(inputs["ids"], IDS) and torch.equal(inputs["mask"], MASK)
        assert inputs["mask"].dtype == torch.bool
    assert torch.equal(as_samples(form, "search").labels, LABELS)


def test_loaders_of_plain_batches_and_inputs_without_labels():
    images = torch.rand(6, 3, 4, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(images, LABELS)
    expected = as_samples((images, LABELS), "search").fingerprint()
    assert as_samples(torch.utils.data.DataLoader(data, batch_size=4), "search").fingerprint() == expected
    unlabelled = [
        images,
        images.numpy(),
        images.double(),
        torch.utils.data.DataLoader(data, batch_size=5),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=5),
        torch.utils.data.TensorDataset(images),
        data,
    ]
    for form in unlabelled:
        assert torch.equal(as_samples(form, "calibration", labelled=False).inputs, images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ids": IDS, "mask": MASK}, "no labels; give .*a dict of inputs with labels"),
        (Items([{"ids": IDS[0]}]), "item 0 of the search data set has ids and no labels or label"),
        (Items([DICTS[0], {"ids": IDS[0], "labels": 1}]), "different inputs: a dict of ids and a dict of ids, mask"),
        (
            Items([({"ids": IDS[0]}, 0), ({"ids": IDS[0, :1]}, 0)]),
            r"inputs 'ids' of the shapes \[\(1,\), \(2,\)\]; pad",
        ),
        ({"ids": IDS, "text": ["a"] * 6, "labels": LABELS}, "inputs of the search samples 'text' cannot be made"),
        (
            torch.utils.data.DataLoader(Items(DICTS), 3, collate_fn=lambda items: items[0]),
            "batch 0 of the search samples: the labels are one number",
        ),
        (
            torch.utils.data.DataLoader(Items([(torch.zeros(3), 0), (torch.zeros(4), 0)]), batch_size=1),
            "batch 1 of the search samples has inputs of another shape than batch 0",
        ),
        (iter(DICTS), "samples are list_iterator; give .* or a DataLoader"),
    ],
)
def test_dicts_and_loaders_that_do_not_fit_are_named(given, message):
    with pytest.raises(DataError, match=message):
        as_samples(given, "search")
