"""A task without any network: quality is a formula, so that tests know every answer."""

import math

import numpy as np

from amed_env.errors import NonFiniteError
from amed_env.evaluation.quality import Evaluator, Quality
from amed_env.hardware import HardwareBackend, load_device
from amed_env.objective import parse_budgets
from amed_env.task import Task
from amed_env.workload import Layer, Workload

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

    def weight_statistics(self):
        return np.linspace(3.0, 6.0, len(self.workload))


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


def formula_task(layers=4, budget=None, device=None, bits=(2, 4, 8), separate=False, harms=None):
    evaluator = FormulaEvaluator(layers, harms)
    backend = load_device(BitProportional() if device is None else device)
    return Task("formula", evaluator, backend, bits, separate=separate, budgets=parse_budgets(budget))


def all_choices(task):
    return np.array(np.meshgrid(*[range(len(task.precisions))] * len(task.workload))).reshape(len(task.workload), -1).T
