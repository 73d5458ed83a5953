"""A short training of a quantized network, without epochs, checkpoints or a choice among epochs."""

from __future__ import annotations

import copy

from amed_env.evaluation.finalists import TrainedWeights
from amed_env.evaluation.quality import Evaluator
from amed_env.problem.allocation import BitAllocation
from amed_env.support.threads import torch_threads
from amed_env.training.checkpoint import stored_scales, used_widths
from amed_env.training.in_training import InTrainingEvaluator
from amed_env.training.network import TrainedNetwork
from amed_env.training.settings import settings_for_score
from amed_env.training.trainer import Trainer


def tune(
    evaluator: Evaluator,
    allocation: BitAllocation,
    steps: int,
    seed: int = 0,
) -> TrainedWeights:
    """Train a network for an allocation, for a number of steps; its `network_evaluator` then uses what was trained.

    Args:
        evaluator: Evaluates the network; one that is in training goes on from where it is, and stays there itself.
        allocation: The allocation.
        steps: Steps of the optimizer; the learning rate falls to zero over them.
        seed: Of order and augmentation.

    Raises:
        NonFiniteError: If the loss is NaN or infinite.
    """
    of_network = evaluator.network_evaluator()
    network = of_network.network
    settings = settings_for_score(of_network.score, seed)
    before = copy.deepcopy(evaluator.trained.state_dict()) if isinstance(evaluator, InTrainingEvaluator) else None
    with torch_threads(of_network.threads):
        if isinstance(evaluator, InTrainingEvaluator):
            trained = evaluator.trained
            trained.select(allocation)
        else:
            trained = TrainedNetwork(network, settings.per_channel)
            trained.start_at(allocation)
        calibration = of_network.samples("calibration").inputs
        trainer = Trainer(network, trained, of_network.training_data, calibration, settings, steps=steps)
        while trainer.step < trainer.steps:
            trainer.train_step()
        trained.export()
        if before is not None:
            trained.load_state_dict(before)
    weights = TrainedWeights(used_widths(network, allocation), stored_scales(network))
    of_network.adopt(*weights)
    return weights
