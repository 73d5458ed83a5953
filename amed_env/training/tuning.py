"""A short training of a quantized network, without epochs, checkpoints or a choice among epochs."""

from __future__ import annotations

from amed_env.evaluation.finalists import TrainedWeights
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.problem.allocation import BitAllocation
from amed_env.support.threads import torch_threads
from amed_env.training.checkpoint import stored_scales, used_widths
from amed_env.training.network import TrainedNetwork
from amed_env.training.settings import TrainingSettings
from amed_env.training.trainer import Trainer


def tune(
    evaluator: PostTrainingEvaluator,
    allocation: BitAllocation,
    steps: int,
    seed: int = 0,
) -> TrainedWeights:
    """Train a network for an allocation, for a number of steps; the evaluator then uses what was trained.

    Args:
        evaluator: Evaluates the network.
        allocation: The allocation.
        steps: Steps of the optimizer; the learning rate falls to zero over them.
        seed: Of order and augmentation.

    Raises:
        NonFiniteError: If the loss is NaN or infinite.
    """
    network = evaluator.network
    # What is scored by its distance from the float network is trained to come near to it: the loss is then the score.
    distill = 1.0 if evaluator.score.against_float else 0.0
    settings = TrainingSettings(distill=distill, temperature=1.0, seed=seed % 2**31)
    with torch_threads(evaluator.threads):
        trained = TrainedNetwork(network, settings.per_channel)
        trained.start_at(allocation)
        calibration = evaluator.samples("calibration").inputs
        trainer = Trainer(network, trained, evaluator.training_data, calibration, settings, steps=steps)
        while trainer.step < trainer.steps:
            trainer.train_step()
        trained.export()
    weights = TrainedWeights(used_widths(network, allocation), stored_scales(network))
    evaluator.adopt(*weights)
    return weights
