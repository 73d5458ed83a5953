"""Masks, targets of detectors and several outputs, as users have them: what fits is taken, the rest says what to do."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

import amed_env
from amed_env.errors import DataError, NetworkError

SAMPLES, CLASSES, SIZE = 12, 3, 4


class Heads(nn.Module):
    """A map of class scores and one of boxes (N, 4, H, W)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.classes, self.boxes = nn.Conv2d(1, CLASSES, 1), nn.Conv2d(1, 4, 1)

    def forward(self, images):
        return [{"classes": self.classes(images)}, (self.boxes(images),)]


def segmenter():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, CLASSES, 1))


def images(seed):
    return torch.rand(SAMPLES, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def masks(seed):
    return torch.randint(0, CLASSES, (SAMPLES, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))


class Pairs(Dataset):
    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.labels[index]


class PassedPairs(IterableDataset):
    def __init__(self, inputs, labels):
        self.pairs = list(zip(inputs, labels, strict=True))

    def __iter__(self):
        return iter(self.pairs)


def collected(batch):
    return tuple(zip(*batch, strict=True))


def stacked(batch):
    return torch.stack([image for image, _ in batch]), [target for _, target in batch]


FORMS = {
    "pair": lambda inputs, labels: (inputs, labels),
    "arrays": lambda inputs, labels: (inputs.numpy(), labels.numpy()),
    "dataset": Pairs,
    "iterable": PassedPairs,
    "loader": lambda inputs, labels: DataLoader(Pairs(inputs, labels), batch_size=5),
    "collected": lambda inputs, labels: DataLoader(
        Pairs(inputs, labels.sum(dim=(1, 2)) % CLASSES), batch_size=5, collate_fn=collected
    ),
}


def task_of(network, **parts):
    return amed_env.make_task(network=network, recipe="nearest", **{"calibration": images(0), **parts})


@pytest.mark.parametrize("form", FORMS)
def test_what_comes_beside_the_only_input_are_labels(form):
    made = FORMS[form]
    network = segmenter()
    if form == "collected":
        network = nn.Sequential(*network, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    task = task_of(network, calibration=made(images(0), masks(0)), search=made(images(1), masks(1)))
    quality = task.quality(task.uniform(4))
    expected = task_of(network, search=images(1), score="kl")
    assert quality.score == pytest.approx(expected.quality(expected.uniform(4)).score, rel=1e-6)
    assert set(quality.metrics) == ({"top-1"} if form == "collected" else {"mean-iou"})


def test_two_inputs_stay_two_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, first, second):
            return self.layer(torch.cat([first, second], dim=1))

    first, second = torch.rand(2, 2 * SAMPLES, 3).unbind()
    calibration, search = (Pairs(first[rows], second[rows]) for rows in (slice(SAMPLES), slice(SAMPLES, None)))
    task = task_of(Sum(), calibration=calibration, search=search)
    assert task.quality(task.uniform(4)).metrics == {}


def test_several_outputs_are_compared_as_values_side_by_side():
    def joined(answers):
        return torch.cat([answers[0]["classes"].flatten(1), answers[1][0].flatten(1)], dim=1)

    several = task_of(Heads(), search=images(1), outputs=lambda answers: answers)
    alone = task_of(Heads(), search=images(1), outputs=joined, score="squared-error")
    assert several.score.name == "squared-error"
    found, expected = (task.quality(task.uniform(3)).score for task in (several, alone))
    assert found == pytest.approx(expected, rel=1e-6) and found > 0
    # One row alone may be scores of classes, and is taken for them: which is said.
    assert task_of(Heads(), search=images(1), outputs=joined).score.name == "divergence"


def test_what_is_said_of_outputs_whose_kind_their_form_decides(caplog):
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 5))
    with caplog.at_level(logging.WARNING, "amed_env"):
        task_of(classifier, search=images(1))
        assert "as class scores; if they are values, take the score 'squared-error'" in caplog.text
        caplog.clear()
        task_of(classifier, search=images(1), score="kl")
        task_of(classifier, search=images(1), score="squared-error")
        task_of(classifier, search=(images(1), torch.arange(SAMPLES) % 5))
    assert "take the score" not in caplog.text


def test_outputs_that_say_nothing_of_single_samples():
    with pytest.raises(NetworkError, match="one number for a whole batch; return a row for each sample"):
        task_of(Heads(), search=images(1), outputs=lambda answers: answers[1][0].mean())


TARGETS = [{"boxes": torch.rand(1 + number % 2, 4), "labels": torch.ones(1)} for number in range(SAMPLES)]


@pytest.mark.parametrize("collate", [None, collected, stacked])
def test_targets_of_a_detector_are_no_labels(collate):
    def made(seed):
        pairs = Pairs(images(seed), TARGETS)
        return pairs if collate is None else DataLoader(pairs, batch_size=4, collate_fn=collate)

    def outputs(answers):
        return answers

    task_of(Heads(), calibration=made(0), search=images(1), outputs=outputs)
    with pytest.raises(DataError, match=r"an array of each sample, or inputs alone: to compare .* takes no labels"):
        task_of(Heads(), search=made(1), outputs=outputs)


def with_void(seed):
    marked = masks(seed)
    marked[-1, 0] = 255
    return marked.to(torch.uint8)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (with_void, {}, r"label 255, but .* 3 classes apart \(0 to 2\)\. If 255 marks pixels .* make it -100"),
        (lambda seed: masks(seed) * 50, {}, r"label 100, but the network tells only 3 classes apart \(0 to 2\)"),
        (lambda seed: masks(seed)[:, None], {}, r"take labels\.squeeze\(1\)"),
        (lambda seed: F.one_hot(masks(seed), CLASSES).movedim(3, 1).float(), {}, r"one-hot; give class .*argmax\(1\)"),
        (lambda seed: masks(seed).float(), {"metrics": ["mean-iou"]}, r"whole numbers: convert them with \.long\(\)"),
        (masks, {"metrics": ["mae"]}, "take a metric of classes, such as top-1 or mean-iou"),
    ],
)
def test_masks_that_do_not_fit(labels, options, message):
    with pytest.raises(DataError, match=message):
        task_of(segmenter(), search=(images(1), labels(1)), **options)


def test_values_have_metrics_of_values():
    regressor = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 1))
    with pytest.raises(DataError, match="values are measured by mae or r2"):
        task_of(regressor, search=(images(1), torch.rand(SAMPLES)), metrics=["top-1"])


class NextToken(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, input_ids, attention_mask):
        return self.head(self.embedding(input_ids) * attention_mask[..., None])


def test_labels_that_repeat_the_tokens_are_remarked_upon(caplog):
    tokens = torch.randint(0, 9, (2, SAMPLES, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(SAMPLES, 6, dtype=torch.int64)
    mask[0, 4:] = 0
    search = {"input_ids": tokens[1], "attention_mask": mask}
    repeated = tokens[1].masked_fill(mask == 0, -100)
    shifted = torch.full_like(repeated, -100)
    shifted[:, :-1] = repeated[:, 1:]
    for labels, remarked in ((repeated, True), (shifted, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "amed_env"):
            task_of(
                NextToken(),
                calibration={"input_ids": tokens[0], "attention_mask": mask},
                search={**search, "labels": labels},
            )
        assert ("shift them: labels[:, :-1] = input_ids[:, 1:]" in caplog.text) == remarked
