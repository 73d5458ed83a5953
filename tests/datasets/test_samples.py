import pickle

import numpy as np
import pytest
import torch

from amed_env.datasets import Samples, Splits
from amed_env.datasets.samples import balanced_order
from amed_env.errors import DataError


def make(count=6, seed=0, name="toy"):
    generator = torch.Generator().manual_seed(seed)
    return Samples(torch.rand(count, 2, 3, generator=generator), torch.arange(count) % 3, name)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "there are no samples"),
        (torch.zeros(3, 0), torch.zeros(3, dtype=torch.int64), "there are no samples"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), "3 inputs but 2 labels"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), "leading axis of samples"),
        (torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.int64), r"float64.*\.float\(\)"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.int32), r"labels are torch.int32.*\.long\(\)"),
        (torch.zeros(3, 2), torch.tensor(1), "leading axis of samples"),
        (np.zeros((3, 2), np.float32), torch.zeros(3, dtype=torch.int64), "not ndarray"),
        (torch.zeros(4, 2), torch.tensor([0, -1, 2, -7]), "2 labels are negative, at index 1, 3"),
    ],
)
def test_bad_samples_are_refused(inputs, labels, message):
    with pytest.raises(DataError, match=message) as caught:
        Samples(inputs, labels, "mine")
    assert str(caught.value).startswith("mine: ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_inputs_are_counted_and_located(value):
    inputs = torch.zeros(9, 2, 2)
    inputs[4, 0, 0] = inputs[4, 1, 1] = inputs[7, 0, 1] = value
    with pytest.raises(DataError, match=r"3 input values in 2 samples .* at index 4, 7;"):
        Samples(inputs, torch.zeros(9, dtype=torch.int64))


def test_fingerprint_is_of_contents_only():
    samples = make()
    assert samples.fingerprint() == make(name="other").fingerprint()
    assert samples.fingerprint() == pickle.loads(pickle.dumps(samples)).fingerprint()
    strided = Samples(samples.inputs.transpose(1, 2).contiguous().transpose(1, 2), samples.labels)
    assert not strided.inputs.is_contiguous()
    assert strided.fingerprint() == samples.fingerprint()
    changed = samples.inputs.clone()
    changed[3, 1, 2] += 1e-6
    others = [
        Samples(changed, samples.labels),
        Samples(samples.inputs, samples.labels.flip(0)),
        Samples(samples.inputs.reshape(6, 3, 2), samples.labels),
        samples.subset([1, 0, 2, 3, 4, 5]),
    ]
    assert len({samples.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_fingerprint_is_pinned():
    samples = Samples(torch.arange(6, dtype=torch.float32).reshape(3, 2), torch.tensor([0, 1, 0]))
    assert samples.fingerprint() == "2cf38cf1af6b257451a6e63efd560629d20b30b0a7de695b9551eb39e9f48bff"


def test_subset_takes_positions_in_order():
    samples = make()
    subset = samples.subset(np.array([4, 0, 4]), "part")
    assert torch.equal(subset.inputs, samples.inputs[[4, 0, 4]])
    assert subset.labels.tolist() == [1, 0, 1]
    assert (subset.name, samples.subset([0]).name, len(subset), subset.sample_shape) == ("part", "toy", 3, (2, 3))


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "at least one index"),
        ([0, 6], "0 to 5"),
        ([-1], "0 to 5"),
        ([0.5], "integers"),
        ([True], "integers"),
        ([[0]], "one row"),
    ],
)
def test_subset_refuses_bad_indices(indices, message):
    with pytest.raises(DataError, match=message):
        make().subset(indices)


def test_batches_cover_all_samples_once():
    samples = make(7)
    batches = list(samples.batches(3))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), samples.inputs)
    with pytest.raises(DataError, match="batch size is 0"):
        list(samples.batches(0))


def test_splits_refuse_a_sample_in_two_parts():
    samples = make(9)
    parts = [samples.subset(range(start, start + 3)) for start in (0, 3, 6)]
    assert len(Splits(*parts).fingerprint()) == 64
    leaking = samples.subset([6, 4, 8])
    with pytest.raises(DataError, match=r"1 of the 3 test samples are also in the search samples \(test index 1\)"):
        Splits(parts[0], parts[1], leaking)
    assert Splits(parts[0], parts[1], leaking, allow_duplicates=True).test is leaking


def test_a_copy_with_another_label_is_still_a_copy():
    samples = make(6)
    relabelled = Samples(samples.inputs[:2], samples.labels[:2] + 1)
    with pytest.raises(DataError, match="also in the calibration samples"):
        Splits(samples.subset([0, 1]), relabelled, samples.subset([4, 5]))


def test_splits_refuse_different_shapes():
    other = Samples(torch.rand(3, 2, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match=r"the search samples have shape \(2, 4\)"):
        Splits(make(), other, make(seed=1))


def test_balanced_order_is_fixed_and_every_prefix_is_balanced():
    labels = np.array([0] * 30 + [1] * 30 + [2] * 10)
    order = balanced_order(labels, "salt")
    assert sorted(order.tolist()) == list(range(70))
    assert np.array_equal(order, balanced_order(labels.tolist(), "salt"))
    assert not np.array_equal(order, balanced_order(labels, "pepper"))
    for length in range(1, 31):
        counts = np.bincount(labels[order[:length]], minlength=3)
        assert counts.max() - counts.min() <= 1
    assert not np.array_equal(order[labels[order] == 0], np.arange(30)), "the order within a class is mixed"
