import pytest
import torch
from networks import Bottleneck, LinearOnly, Residual, Twice, make
from torch import nn
from torch.nn import functional as F
from traced import trace_equals_once as trace
from traced import traced_once

from amed_env.datasets.digits import digits_splits
from amed_env.errors import InputError, NonFiniteError, UnknownNameError
from amed_env.networks import pretrained_digits_cnn
from amed_env.quantization.bias_correction import correct_biases_of, corrected
from amed_env.quantization.equalization import equalizable_pairs, equalize
from amed_env.quantization.graph import find_graph
from amed_env.quantization.learned_rounding import RoundingLearner
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.ranges import quantize_weight
from amed_env.quantization.recipe import LEARNED_WIDTHS, RECIPES, Recipe, make_recipe


def quantized(kind, samples=256, **options):
    network, inputs = make(kind, samples)
    return network, QuantizedNetwork(traced_once(kind, network, inputs), inputs, **options), inputs


def divergence(quantized_network, exact, inputs, bits):
    quantized_network.select(quantized_network.workload.uniform(bits))
    found = F.log_softmax(quantized_network(inputs), 1)
    return float(F.kl_div(found, F.log_softmax(exact, 1), log_target=True, reduction="batchmean"))


def learn(network, inputs, **options):
    recipe = Recipe(**{"steps": 150, "batch_size": 32, **options})
    learner = RoundingLearner(network, recipe, inputs)
    learner.run()
    for name in network.workload.layer_names:
        for bits, prepared in learner.results(name).items():
            network.use(name, bits, prepared)
    return learner


@pytest.fixture(scope="module")
def digits():
    return trace(pretrained_digits_cnn(), torch.zeros(1, 1, 8, 8), "digits"), digits_splits()


def divergences_on_new_images(digits, rounding, shuffled=False):
    """Divergence from the float network on the search images, at each learned width, before and after learning."""
    traced, splits = digits
    candidate = QuantizedNetwork(traced, splits.calibration.inputs)
    with torch.no_grad():
        exact = traced.module(splits.search.inputs)
    before = [divergence(candidate, exact, splits.search.inputs, bits) for bits in LEARNED_WIDTHS]
    learner = RoundingLearner(candidate, Recipe(rounding=rounding, steps=100, batch_size=16), splits.calibration.inputs)
    if shuffled:
        learner._targets = learner._targets[torch.randperm(len(learner._targets), generator=torch.Generator())]
    learner.run()
    for name in candidate.workload.layer_names:
        for bits, prepared in learner.results(name).items():
            candidate.use(name, bits, prepared)
    return before, [divergence(candidate, exact, splits.search.inputs, bits) for bits in LEARNED_WIDTHS]


@pytest.mark.parametrize(("rounding", "part"), [("layer", 0.95), ("block", 0.5), ("network", 0.3)])
def test_it_brings_the_network_nearer_to_the_float_one_on_new_images(digits, rounding, part):
    before, after = divergences_on_new_images(digits, rounding)
    assert after[0] < part * before[0]
    assert sum(after) < part * sum(before)


def test_it_learns_nothing_from_a_shuffled_teacher(digits):
    before, after = divergences_on_new_images(digits, "network", shuffled=True)
    assert sum(after) > 0.8 * sum(before)


@pytest.mark.parametrize("rounding", ["layer", "block", "network"])
def test_every_weight_goes_to_a_neighbour(rounding):
    _, candidate, inputs = quantized(Residual)
    learn(candidate, inputs, rounding=rounding, steps=60, learn_scales=False, learning_rate=0.3)
    moved = 0
    for name, layer in candidate.layers.items():
        weight = layer.layer.weight.detach()
        for bits in LEARNED_WIDTHS:
            nearest, scales = quantize_weight(weight, bits)
            found = layer.prepared[bits].weight / scales
            limit = 2 ** (bits - 1)
            lower = torch.floor(weight / scales).clamp(-limit, limit - 1)
            upper = torch.floor(weight / scales + 1).clamp(-limit, limit - 1)
            assert (((found - lower).abs() < 1e-3) | ((found - upper).abs() < 1e-3)).all(), name
            moved += int(((found - nearest).abs() > 0.5).sum())
    assert moved > 0


def test_layer_by_layer_the_error_of_each_layer_falls():
    _, candidate, inputs = quantized(Residual)
    read = {}
    handles = [
        layer.register_forward_pre_hook(lambda module, given: read.__setitem__(module.name, given[0]))
        for layer in candidate.layers.values()
    ]
    candidate.select(candidate.workload.uniform(32))
    candidate(inputs)
    for handle in handles:
        handle.remove()

    def errors():
        return {
            name: float(
                (layer.compute(read[name], layer.layer.weight - layer.prepared[2].weight, None)).square().mean()
            )
            for name, layer in candidate.layers.items()
        }

    candidate.prepare([2])
    before = errors()
    learn(candidate, inputs, rounding="layer", steps=100, learn_scales=False)
    ratios = [errors()[name] / before[name] for name in before]
    assert sum(ratios) / len(ratios) < 0.95


def test_the_same_seed_gives_the_same_result_and_a_restored_learner_goes_on():
    _, candidate, inputs = quantized(Residual)
    recipe = Recipe(steps=30, batch_size=16)
    whole = RoundingLearner(candidate, recipe, inputs)
    whole.run()

    class StopError(Exception):
        pass

    def stop(done, total):
        if done == 13:
            raise StopError

    first = RoundingLearner(candidate, recipe, inputs)
    with pytest.raises(StopError):
        first.run(stop)
    second = RoundingLearner(candidate, recipe, inputs)
    second.restore(first.state())
    seen = []
    second.run(lambda done, total: seen.append((done, total)))
    assert seen[0] == (14, 30) and seen[-1] == (30, 30)
    for name in candidate.workload.layer_names:
        for bits, expected in whole.results(name).items():
            found = second.results(name)[bits]
            assert torch.equal(found.integers, expected.integers)
            assert torch.equal(found.scales, expected.scales)
            assert found.activation_scale == expected.activation_scale


def test_learning_leaves_the_network_as_it_was():
    network, candidate, inputs = quantized(Residual)
    candidate.select(candidate.workload.uniform(3))
    before = candidate(inputs)
    RoundingLearner(candidate, Recipe(steps=5, batch_size=8), inputs).run()
    candidate.select(candidate.workload.uniform(3))
    assert torch.equal(candidate(inputs), before)
    candidate.select(candidate.workload.uniform(32))
    torch.testing.assert_close(candidate(inputs), network(inputs).detach(), rtol=1e-4, atol=1e-5)


def test_nan_stops_it():
    _, candidate, inputs = quantized(Residual)
    broken = inputs.clone()
    broken[:] = float("nan")
    with pytest.raises(NonFiniteError, match=r"met NaN or infinity at step 0"):
        RoundingLearner(candidate, Recipe(steps=5, batch_size=8), broken).run()


@pytest.mark.parametrize("kind", [Residual, Bottleneck, LinearOnly])
def test_equalisation_changes_weights_but_not_the_network(kind):
    network, inputs = make(kind)
    with torch.no_grad():  # ranges that ask for it
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.logspace(-1, 1, len(parameter)).view(-1, *[1] * (parameter.dim() - 1)))
    traced = trace(network, inputs[:1])
    layers = {name: traced.module.get_submodule(name) for name in traced.workload.layer_names}
    graph = find_graph(traced.module, layers, inputs[:2])
    expected = graph.module(inputs).detach()
    pairs = equalizable_pairs(graph, layers)
    assert pairs == {Residual: [("a1", "a2"), ("b1", "b2")], Bottleneck: [], LinearOnly: []}[kind]
    assert equalize(graph, layers) == pairs
    torch.testing.assert_close(graph.module(inputs).detach(), expected, rtol=1e-3, atol=1e-4)
    for first, second in pairs:
        written = layers[first].weight.flatten(1).abs().amax(1)
        read = layers[second].weight.transpose(0, 1).flatten(1).abs().amax(1)
        torch.testing.assert_close(written, read, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Conv1d(4, 8, 3, padding=1), nn.ReLU(), nn.Linear(8, 5), nn.Flatten(), nn.Linear(40, 3)], (4, 8)),
        ([nn.Conv1d(4, 6, 3, padding=1), nn.ReLU(), nn.Linear(8, 5), nn.Flatten(), nn.Linear(30, 3)], (4, 8)),
        ([nn.Linear(8, 6), nn.ReLU(), nn.Conv1d(6, 6, 1), nn.Flatten(), nn.Linear(36, 3)], (6, 8)),
        ([nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.Flatten(), nn.Linear(128, 3)], (4, 8, 8)),
    ],
    ids=["over time", "over time, other size", "over places", "two filters a channel"],
)
def test_layers_that_read_other_axes_are_not_equalised(layers, shape):
    torch.manual_seed(0)
    network, inputs = nn.Sequential(*layers).eval(), torch.rand(16, *shape)
    traced = trace(network, inputs[:1])
    exact, equalised = (QuantizedNetwork(traced, inputs, engine="float", equalize_layers=on) for on in (False, True))
    for candidate in (exact, equalised):
        candidate.select(traced.workload.uniform(32))
    torch.testing.assert_close(equalised(inputs), exact(inputs), rtol=1e-4, atol=1e-5)


def channel_means(candidate, inputs, name):
    found = {}
    handle = candidate.layers[name].register_forward_hook(lambda _, read, out: found.__setitem__("out", out))
    candidate.run_in_float(inputs)
    handle.remove()
    return found["out"].double().mean(dim=[axis for axis in range(found["out"].dim()) if axis != 1])


def test_bias_correction_keeps_the_mean_of_every_channel():
    _, candidate, inputs = quantized(Residual)
    candidate.select(candidate.workload.uniform(32))
    exact = {name: channel_means(candidate, inputs, name) for name in candidate.workload.layer_names}
    candidate.prepare([2])
    before = {(name, 2): candidate.layers[name].prepared[2] for name in candidate.workload.layer_names}
    for (name, bits), prepared in corrected(candidate, before, inputs).items():
        candidate.use(name, bits, prepared)
        candidate.select(candidate.workload.uniform(32).replace({name: (2, 32)}))
        torch.testing.assert_close(channel_means(candidate, inputs, name), exact[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("together", [False, True])
def test_bias_correction_of_a_layer_that_is_called_twice_keeps_the_mean_over_its_calls(together):
    _, candidate, inputs = quantized(Twice)
    name = "conv"

    def mean_over_calls():
        outputs = []
        handle = candidate.layers[name].register_forward_hook(lambda _, read, out: outputs.append(out.double()))
        candidate.run_in_float(inputs)
        handle.remove()
        assert len(outputs) == 2
        return torch.cat(outputs).mean(dim=(0, 2, 3))

    candidate.select(candidate.workload.uniform(32))
    exact = mean_over_calls()
    candidate.prepare([2])
    allocation = candidate.workload.uniform(32).replace({name: (2, 32)})
    candidate.select(allocation)
    before = (mean_over_calls() - exact).abs().max()
    if together:
        correct_biases_of(candidate, allocation, inputs)
    else:
        only = {(name, 2): candidate.layers[name].prepared[2]}
        candidate.use(name, 2, corrected(candidate, only, inputs)[name, 2])
    candidate.select(allocation)
    # The second call reads what the first one wrote, so that the means cannot be kept exactly.
    assert (mean_over_calls() - exact).abs().max() < 0.35 * before


def test_biases_of_one_allocation_keep_the_means_of_all_layers_together():
    _, candidate, inputs = quantized(Residual)
    candidate.select(candidate.workload.uniform(32))
    exact = {name: channel_means(candidate, inputs, name) for name in candidate.workload.layer_names}
    allocation = candidate.workload.uniform(3)
    correct_biases_of(candidate, allocation, inputs)
    candidate.select(allocation)
    for name in candidate.workload.layer_names:
        torch.testing.assert_close(channel_means(candidate, inputs, name), exact[name], rtol=1e-3, atol=2e-3)


def test_recipes():
    assert make_recipe(None) == RECIPES["network"] and make_recipe("layer").rounding == "layer"
    assert len({recipe.fingerprint() for recipe in RECIPES.values()}) == len(RECIPES)
    assert RECIPES["nearest"].fingerprint() == RECIPES["nearest"].with_changes(steps=3).fingerprint()
    assert RECIPES["network"].fingerprint() != RECIPES["network"].with_changes(steps=3).fingerprint()
    with pytest.raises(UnknownNameError, match="unknown recipe 'netwrok'; did you mean 'network'"):
        make_recipe("netwrok")
    with pytest.raises(UnknownNameError, match="recipe option 'step'; did you mean 'steps'"):
        make_recipe("network").with_changes(step=3)
    for changes in ({"steps": 0}, {"batch_size": 1.5}, {"learning_rate": -1.0}):
        with pytest.raises(InputError, match=next(iter(changes))):
            Recipe(**changes)
    with pytest.raises(UnknownNameError, match="unknown rounding 'nearst'"):
        Recipe(rounding="nearst")


@pytest.mark.parametrize(
    ("activations", "allowed"),
    [("tied", {(b, b) for b in (2, 3, 4, 8)}), ("float", {(b, 32) for b in (2, 3, 4, 8)})],
)
def test_activations_are_as_wide_as_the_recipe_says(activations, allowed):
    _, network, inputs = quantized(Residual)
    learner = RoundingLearner(network, Recipe(activations=activations, steps=60, batch_size=8), inputs)
    drawn = []
    for _ in range(60):
        learner._draw_allocation()
        drawn.append([(layer.weight_bits, layer.activation_bits) for layer in learner._layers])
    assert {pair for pairs in drawn for pair in pairs} == allowed
    assert 5 < sum(len(set(pairs)) == 1 for pairs in drawn) < 40  # uniform ones, which are asked for first


@pytest.mark.parametrize("change", [{"activations": "narrow"}, {"start": "best"}])
def test_unknown_words_of_a_recipe_are_refused(change):
    with pytest.raises(UnknownNameError):
        Recipe(**change)
