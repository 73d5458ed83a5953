import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from training_samples import images, make_data, make_evaluator, settings

from amed_env.datasets.training import TrainingData
from amed_env.errors import DataError, InputError, NonFiniteError
from amed_env.training.checkpoint import read_state, write_state
from amed_env.training.network import TrainedNetwork
from amed_env.training.trainer import Trainer, distillation_loss


def trainer_of(bits=3, **changes):
    evaluator, chosen = make_evaluator(), settings(**changes)
    trained = TrainedNetwork(evaluator.network, chosen.per_channel, chosen.batch_norm == "inserted")
    trained.start_at(evaluator.workload.uniform(bits))
    return Trainer(evaluator.network, trained, make_data(), evaluator.samples("calibration").inputs, chosen)


def train(trainer, count):
    return [trainer.train_step()[0] for _ in range(count)]


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "sgd", "batch_norm": "folded", "distill": 0.5}], ids=["adam", "sgd"]
)
def test_a_split_run_equals_the_unsplit_one(tmp_path, changes):
    whole = trainer_of(**changes)
    losses = train(whole, 8)
    first = trainer_of(**changes)
    assert train(first, 4) == losses[:4]  # in the middle of the second epoch
    write_state(tmp_path / "state", *first.state())
    second = trainer_of(**changes)
    second.restore(*read_state(tmp_path / "state"))
    assert second.step == 4 and train(second, 4) == losses[4:]
    for (name, found), expected in zip(
        second.trained.state_dict().items(), whole.trained.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), name
    assert second.progress == whole.progress


def test_a_state_without_the_optimizer_is_another_run(tmp_path):
    """The test above would notice: momentum matters."""
    losses = train(trainer_of(), 6)
    first = trainer_of()
    train(first, 4)
    tensors, values = first.state()
    second = trainer_of()
    second.restore({n: t for n, t in tensors.items() if not n.startswith("optimizer")}, values)
    assert train(second, 2) != losses[4:]


def test_seeds_decide_on_order_and_augmentation():
    assert train(trainer_of(seed=1), 3) == train(trainer_of(seed=1), 3)
    assert train(trainer_of(seed=1), 3) != train(trainer_of(seed=2), 3)


def test_every_image_comes_once_an_epoch():
    trainer = trainer_of()
    for epoch in range(2):
        chosen = []
        for step in range(3):
            trainer.step = 3 * epoch + step
            chosen += trainer._chosen().tolist()
        assert sorted(chosen) == list(range(96))


def test_training_learns():
    trainer = trainer_of(bits=2, epochs=10)
    losses = train(trainer, 30)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def decays(trainer, steps):
    found = {}
    for step in steps:
        trainer.step = step
        found[step] = trainer.decay
    return found


def test_the_learning_rate_rises_and_falls_along_a_cosine():
    trainer = trainer_of(epochs=100)  # 300 steps, 15 of which rise
    expected = {0: 1 / 15, 75: (1 + 0.5**0.5) / 2, 150: 0.5, 300: 0}
    assert decays(trainer, expected) == pytest.approx(expected, abs=1e-12)


def test_a_rate_that_never_falls_rises_for_a_hundred_steps():
    trainer = trainer_of()
    trainer.steady = True
    expected = {0: 0.01, 49: 0.5, 99: 1, 5_000: 1}
    assert decays(trainer, expected) == pytest.approx(expected, abs=1e-12)


def test_distillation_is_the_divergence_of_softened_probabilities():
    numbers = np.random.default_rng(0)
    scores, taught = numbers.normal(size=(4, 5)), numbers.normal(size=(4, 5))
    expected = 0.0
    for s, t in zip(scores, taught, strict=True):
        p, q = np.exp(t / 3) / np.exp(t / 3).sum(), np.exp(s / 3) / np.exp(s / 3).sum()
        expected += 9 * sum(p * np.log(p / q)) / 4
    assert float(distillation_loss(torch.tensor(scores), torch.tensor(taught), 3.0)) == pytest.approx(expected)
    assert float(distillation_loss(torch.tensor(taught), torch.tensor(taught), 3.0)) == pytest.approx(0, abs=1e-12)


def test_the_loss_mixes_labels_and_the_float_network():
    trainer = trainer_of(distill=0.25, temperature=3.0)
    inputs, labels = images(6, 9)
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    taught = trainer.network.float_module()(inputs)
    expected = 0.75 * F.cross_entropy(scores, labels) + 0.25 * distillation_loss(scores, taught, 3.0)
    assert float(trainer._loss(scores, inputs, labels)) == pytest.approx(float(expected))


def test_a_loss_that_is_no_number_names_the_step():
    trainer = trainer_of()
    train(trainer, 4)
    head = trainer.trained.trained_layers()["head"]
    head.bias.data[0] = torch.nan
    weight = head.weight.detach().clone()
    with pytest.raises(NonFiniteError, match=r"step 5 of 9 \(epoch 2\); choose a lower learning rate"):
        trainer.train_step()
    assert trainer.step == 4 and torch.equal(head.weight, weight)


def test_augmentation_moves_and_mirrors_each_image_by_itself():
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(1, 255, (40, 2, 5, 4), dtype=torch.uint8, generator=generator)
    data = TrainingData(
        stored,
        torch.arange(40) % 3,
        validation_of((2, 5, 4)),
        shift=2,
        mirrored=True,
        scale=torch.tensor([2.0, 3.0]),
        offset=torch.tensor([0.5, -1.0]),
    )
    chosen = torch.arange(39, -1, -1)
    inputs, labels = data.batch(chosen, torch.Generator().manual_seed(7))
    assert inputs.shape == (40, 2, 5, 4) and inputs.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, (chosen % 3))
    ways = set()
    for image, position in zip(inputs, chosen.tolist(), strict=True):
        ways.add(next(way for way in all_ways(stored[position]) if torch.equal(way[1], image))[0])
    assert len(ways) > 15  # of 2 x 5 x 5


def all_ways(image):
    for mirror in (False, True):
        turned = image.flip(2) if mirror else image
        for down in range(5):
            for right in range(5):
                padded = torch.zeros(2, 9, 8)
                padded[:, 2:7, 2:6] = turned
                moved = padded[:, down : down + 5, right : right + 4]
                yield (
                    (mirror, down, right),
                    moved * torch.tensor([2.0, 3.0])[:, None, None] + torch.tensor([0.5, -1.0])[:, None, None],
                )


def validation_of(shape):
    from amed_env.datasets import Samples

    return Samples(torch.zeros(4, *shape), torch.arange(4), "validation")


def test_training_data_that_does_not_fit_is_refused():
    inputs, labels = images(6, 0)
    with pytest.raises(DataError, match="labels"):
        TrainingData(inputs, labels[:5], validation_of((2, 6, 6)))
    with pytest.raises(DataError, match="validation samples"):
        TrainingData(inputs, labels, validation_of((3, 6, 6)))


def test_settings_are_checked():
    with pytest.raises(InputError, match=r"learning_rate.*greater than 0"):
        settings(learning_rate=-1.0)
    with pytest.raises(InputError, match="distill"):
        settings(distill=math.nan)


def test_damaged_states_are_refused(tmp_path):
    (tmp_path / "state").write_bytes(b"no such thing")
    with pytest.raises(InputError, match="cannot be read"):
        read_state(tmp_path / "state")
