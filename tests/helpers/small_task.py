"""A task without any network: quality is a formula, so that tests know every answer."""

import math

import numpy as np

from amed_env import Layer, Quality, Task, Workload
from amed_env.errors import NonFiniteError
from amed_env.evaluation.quality import Evaluator
from amed_env.hardware import Capabilities, HardwareBackend, load_device
from amed_env.problem.objective import parse_budgets
from amed_env.problem.score import DIVERGENCE

SAMPLES = 1000


class FormulaEvaluator(Evaluator):
    """Loses `harm[layer] * 2**-bits` of accuracy a layer, and counts how often it is asked."""

    fingerprint = "formula"

    def __init__(self, layers=4, harms=None):
        kinds = ["conv", "depthwise", "linear"]
        self.workload = Workload(
            "formula",
            tuple(
                Layer(f"layer{i}", kinds[i % 3], m=16, n=1 if i % 3 == 1 else 8 + i, k=9, groups=8 if i % 3 == 1 else 1)
                for i in range(layers)
            ),
        )
        self.harms = harms or [0.2 * (i + 1) for i in range(layers)]
        self.asked = []
        self.fail_on = set()

    def harm(self, position, precision):
        return 0.0 if precision.weight_bits == 32 else self.harms[position] * 2.0 ** -min(precision)

    def evaluate(self, allocation, split="search"):
        self.asked.append((allocation, split))
        if allocation in self.fail_on:
            raise NonFiniteError("the network returns NaN")
        loss = sum(self.harm(i, p) for i, p in enumerate(allocation.values()))
        return Quality(round(SAMPLES * 0.95 * math.exp(-loss)), SAMPLES, 0.1 + loss)

    def predicted_loss(self, precisions):
        return np.array([[self.harm(i, p) for p in precisions] for i in range(len(self.workload))])

    def sensitivity(self, measure, precisions):
        """Another proxy than the truth: the layers' harms are the other way round."""
        return self.predicted_loss(precisions)[::-1].copy()

    def weight_statistics(self):
        return np.linspace(3.0, 6.0, len(self.workload))


class InteractingEvaluator(FormulaEvaluator):
    """Loses more or less where two layers are narrow together, by amounts that a seed draws.

    Single layers are told truly by `predicted_loss`, and pairs by `pair_divergences` if `tells_pairs`.
    """

    tells_pairs = True

    def __init__(self, layers=6, seed=0, strength=0.6):
        numbers = np.random.default_rng(seed)
        super().__init__(layers, list(numbers.uniform(0.05, 0.8, layers)))
        self.fingerprint = f"interacting {seed}"
        self.together = np.triu(numbers.normal(0, strength, (layers, layers)), 1)

    def pair(self, i, first, j, second):
        return self.together[i, j] * 2.0 ** -(min(first) + min(second) - 2)

    def evaluate(self, allocation, split="search"):
        precisions = list(allocation.values())
        self.asked.append((allocation, split))
        loss = sum(self.harm(i, p) for i, p in enumerate(precisions))
        if precisions[0].weight_bits < 32:
            layers = range(len(precisions))
            loss += sum(self.pair(i, precisions[i], j, precisions[j]) for i in layers for j in layers if i < j)
        return Quality(round(SAMPLES / (1 + math.exp(loss - 1))), SAMPLES, math.log(1 + math.exp(loss - 1)))

    def pair_divergences(self, precisions, reach):
        if not self.tells_pairs:
            return super().pair_divergences(precisions, reach)
        layers, count = len(self.workload), len(precisions)
        found = np.zeros((layers, count, layers, count))
        for i in range(layers):
            for j in range(i + 1, min(layers, i + reach + 1)):
                for m, first in enumerate(precisions):
                    for n, second in enumerate(precisions):
                        found[i, m, j, n] = found[j, n, i, m] = self.pair(i, first, j, second)
        return found


class UnlabelledEvaluator(FormulaEvaluator):
    """The same network on samples without labels: all that is known is its divergence from the float network."""

    score, metrics, splits = DIVERGENCE, (), ("search",)

    def evaluate(self, allocation, split="search"):
        loss = 1.0 - super().evaluate(allocation, split).accuracy / 0.95
        return Quality(None, SAMPLES, None, loss, DIVERGENCE, soft_loss=0.1 + loss)


class BitProportional(HardwareBackend):
    """Latency is MACs x weight bits, in a made-up unit."""

    name = "bit-proportional"

    def layer_cost(self, layer, precision):
        return {"latency_ms": layer.macs * precision.weight_bits * 1e-6}


class SharedBuffer(HardwareBackend):
    """Costs that do not add up: the widest layer decides about the clock."""

    name = "shared-buffer"

    def capabilities(self):
        base = super().capabilities()
        return type(base)(base.weight_bits, base.activation_bits, base.metrics, additive=False)

    def evaluate(self, workload, allocation):
        from amed_env.hardware import Cost

        widest = max(precision.weight_bits for precision in allocation.values())
        return Cost(self.name, {"latency_ms": workload.macs * widest * 1e-6})


def formula_task(
    layers=4, budget=None, device=None, bits=(2, 4, 8), separate=False, harms=None, evaluator=FormulaEvaluator
):
    evaluator = evaluator(layers, harms)
    backend = load_device(BitProportional() if device is None else device)
    return Task("formula", evaluator, backend, bits, separate=separate, budgets=parse_budgets(budget))


def all_choices(task):
    return np.array(np.meshgrid(*[range(len(task.precisions))] * len(task.workload))).reshape(len(task.workload), -1).T


class Flaky(HardwareBackend):
    """Latency is MACs x weight bits; fails wherever `fails` says so, by number of call and allocation."""

    name = "flaky"
    bits = (2, 4, 8)
    retries = 0

    def __init__(self, fails=lambda call, allocation: False):
        self.fails, self.calls = fails, 0

    def capabilities(self):
        return Capabilities.same_for_all_kinds(self.bits, self.metrics, additive=False)

    def layer_cost(self, layer, precision):
        return {"latency_ms": layer.macs * precision.weight_bits * 1e-6}

    def evaluate(self, workload, allocation):
        self.calls += 1
        if self.fails(self.calls, allocation):
            raise RuntimeError("the board does not answer")
        return super().evaluate(workload, allocation)


def flaky_task(layers=3, budget=None):
    return Task("formula", FormulaEvaluator(layers), Flaky(), (2, 4, 8), budgets=parse_budgets(budget))
