"""Widths that truly reach the network, and the way back into integers."""

import pytest
import torch
from torch import nn
from training_samples import LAYERS, make_data, make_evaluator, settings

from amed_env.quantization.layers import channels_last
from amed_env.training.layers import LearnedSteps
from amed_env.training.network import TrainedNetwork
from amed_env.training.trainer import Trainer


def steps_of(network, allocation, count, **changes):
    """A trainer after some steps."""
    chosen = settings(**changes)
    trained = TrainedNetwork(network.network, chosen.per_channel, chosen.batch_norm == "inserted")
    trained.start_at(allocation)
    trainer = Trainer(network.network, trained, make_data(), network.samples("calibration").inputs, chosen)
    for _ in range(count):
        trainer.train_step()
    return trainer


class Levels(nn.Module):
    """Records what a layer reads and with which weights it computes."""

    def __init__(self, layer):
        super().__init__()
        self.inputs, self.weights, self.compute = [], [], layer.compute
        layer.compute = self.record

    def record(self, inputs, weight, bias):
        self.inputs.append(inputs.detach()), self.weights.append(weight.detach())
        return self.compute(inputs, weight, bias)


@pytest.mark.parametrize("norm", ["inserted", "folded"])
@pytest.mark.parametrize("bits", [2, 3])
def test_layers_compute_with_as_many_levels_as_their_bits_have(bits, norm):
    evaluator = make_evaluator()
    trainer = steps_of(evaluator, evaluator.workload.uniform(bits), 4, batch_norm=norm)
    seen = {name: Levels(layer) for name, layer in evaluator.network.layers.items()}
    inputs = evaluator.samples("search").inputs
    trainer.trained(inputs)
    for name in LAYERS:
        assert 2 <= len(seen[name].inputs[0].unique()) <= 2**bits, name
        for channel in seen[name].weights[0]:
            assert len(channel.unique()) <= 2**bits
    # Signed where a layer reads sums without an activation, and there alone (and in the images).
    signed = {name for name in LAYERS if (seen[name].inputs[0] < 0).any()}
    assert signed == {"stem", "expand"}
    trainer.trained.export()
    for name, layer in evaluator.network.layers.items():
        integers = layer.prepared[bits].integers
        assert all(len(channel.unique()) <= 2**bits for channel in integers), name


def test_changing_one_width_changes_the_outputs():
    evaluator = make_evaluator()
    trained = TrainedNetwork(evaluator.network)
    trained.add_widths((2, 8))
    wide, inputs = evaluator.workload.uniform(8), evaluator.samples("search").inputs
    trained.select(wide)
    before = trained(inputs)
    for name in LAYERS:
        for precision in ((2, 8), (8, 2)):
            trained.select(wide.replace({name: precision}))
            assert not torch.equal(trained(inputs), before), (name, precision)
    trained.select(wide)
    assert torch.equal(trained(inputs), before)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("recipe", ["nearest", "bias-correction"])
def test_training_starts_where_post_training_ended(recipe, norm):
    evaluator = make_evaluator(recipe)
    evaluator.prepare()
    allocation = evaluator.workload.uniform(3).replace({"head": (4, 8), "stem": (8, 8)})
    inputs = evaluator.samples("search").inputs
    evaluator.network.select(allocation)
    before = evaluator.network(inputs)
    trained = TrainedNetwork(evaluator.network, normalise=norm)
    trained.start_at(allocation)
    trained.observe([evaluator.samples("calibration").inputs])
    # Division here and multiplication by the inverse there round some values in the middle to either side.
    assert float((trained.eval()(inputs).detach() - before).abs().quantile(0.95)) < 1e-2
    trained.export()
    evaluator.network.select(allocation)
    torch.testing.assert_close(evaluator.network(inputs), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["inserted", "folded"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_what_was_trained_is_what_the_integer_network_computes(norm, per_channel):
    evaluator = make_evaluator()
    allocation = evaluator.workload.uniform(3).replace({"expand": (2, 4), "head": (8, 8)})
    trainer = steps_of(evaluator, allocation, 6, batch_norm=norm, per_channel=per_channel)
    inputs = channels_last(evaluator.samples("test").inputs)
    expected = trainer.trained.eval()(inputs).detach()
    trainer.trained.export()
    network = evaluator.network
    network.select(allocation)
    # Rounded scales may put single values on the other side of a middle.
    for found in (network(inputs), network.run_in_float(inputs)):
        assert (found - expected).abs().median() < 1e-3
        assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.95


def test_weights_steps_and_norms_move_and_float_layers_do_not():
    evaluator = make_evaluator()
    allocation = evaluator.workload.uniform(3).replace({"project": (32, 8), "head": (4, 32)})
    trained = TrainedNetwork(evaluator.network, normalise=True)
    trained.start_at(allocation)
    trainer = Trainer(
        evaluator.network,
        trained,
        make_data(),
        evaluator.samples("calibration").inputs,
        settings(batch_norm="inserted"),
    )
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    for _ in range(4):
        trainer.train_step()
    moved = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    of_layer = {
        name: {m.split(".", 2)[2] for m in moved if m.startswith(f"layers.{i}.")} for i, name in enumerate(LAYERS)
    }
    norm = {"gain", "shift", "mean", "variance"}
    assert of_layer["stem"] == {"weight", "weight_steps.3.step", "activation_steps.3.step", *norm}
    assert of_layer["project"] == {"activation_steps.8.step"}
    assert of_layer["head"] == {"weight", "bias", "weight_steps.4.step"}


def test_per_channel_and_per_tensor_steps():
    evaluator = make_evaluator()
    for per_channel, shapes in ((True, (6, 1, 1, 1)), (False, (1, 1, 1, 1))):
        trained = TrainedNetwork(evaluator.network, per_channel)
        trained.start_at(evaluator.workload.uniform(3))
        assert trained.trained_layers()["stem"].weight_steps["3"].step.shape == shapes


def test_step_sizes_stay_positive():
    steps = LearnedSteps(3, torch.tensor([0.5, -0.25]), unsigned=False)
    with torch.no_grad():
        steps.step -= 1.0
    steps.keep_positive()
    assert steps.step.tolist() == pytest.approx([0.005, 0.0025]) and steps.signed()[1] < 0


def test_refreshed_norms_have_the_statistics_of_the_batches():
    evaluator = make_evaluator()
    trained = TrainedNetwork(evaluator.network, normalise=True)
    trained.add_widths((2, 8))
    trained.select(evaluator.workload.uniform(8))
    inputs = evaluator.samples("calibration").inputs
    trained.observe([inputs])
    trained.select(evaluator.workload.uniform(2))
    trained.refresh_norms([inputs[:24], inputs[24:]])
    stem = trained.trained_layers()["stem"]
    step = stem.activation_steps["2"]
    read = (inputs / step.step).round().clamp(step.low, step.high) * step.step
    outputs = [nn.functional.conv2d(part, stem.quantized_weight(), padding=1) for part in read.split(24)]
    expected = torch.stack([part.mean((0, 2, 3)) for part in outputs]).mean(0)
    torch.testing.assert_close(stem.mean, expected, atol=1e-5, rtol=1e-4)
