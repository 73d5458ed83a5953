"""Asking a device what it refuses: by the cost of single layers, or of whole networks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Literal, Protocol

from amed_env.errors import UnsupportedLayerError, UnsupportedPrecisionError
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.workload import Layer, Workload

logger = logging.getLogger(__name__)

Question = Literal["layers", "networks"]
"""What a device is asked about to learn what it refuses: the cost of a layer, or that of a whole network."""


class Refusing(Protocol):
    """What is asked: a device that may raise `UnsupportedPrecisionError`."""

    name: str

    def layer_cost(self, layer: Layer, precision: Precision) -> object:
        """Cost of one layer."""

    def evaluate(self, workload: Workload, allocation: BitAllocation) -> object:
        """Cost of a network."""


def without_refused(
    device: Refusing, workload: Workload, allowed: Sequence[Collection[Precision]], question: Question | None
) -> list[list[Precision]]:
    """What is left of precisions by layer without those that a device refuses by `UnsupportedPrecisionError`.

    A failure is no refusal: the first one ends the asking, and shows again when costs are needed.

    Raises:
        UnsupportedLayerError: If the device does not know a layer at all.
    """
    left = [list(of_layer) for of_layer in allowed]
    try:
        if question == "layers":
            _ask_about_layers(device, workload, left)
        elif question == "networks" and all(left):
            _ask_about_networks(device, workload, left)
    except UnsupportedLayerError:
        raise
    except (Exception, SystemExit):  # a simulator may call sys.exit()
        logger.debug("device %r failed while it was asked what it can run", device.name, exc_info=True)
    return left


def _ask_about_layers(device: Refusing, workload: Workload, left: list[list[Precision]]) -> None:
    for layer, of_layer in zip(workload, left, strict=True):
        for precision in list(of_layer):
            if _refuses(partial(device.layer_cost, layer, precision)):
                of_layer.remove(precision)


def _ask_about_networks(device: Refusing, workload: Workload, left: list[list[Precision]]) -> None:
    """As many questions as some layer has precisions, each about the next of all layers; more where one is refused."""
    names, own = workload.layer_names, [tuple(of_layer) for of_layer in left]
    accepted: BitAllocation | None = None
    refused: list[int] = []
    for turn in range(max(map(len, own))):
        of_turn = [of_layer[min(turn, len(of_layer) - 1)] for of_layer in own]
        allocation = BitAllocation(dict(zip(names, of_turn, strict=True)))
        if _refuses(partial(device.evaluate, workload, allocation)):
            refused.append(turn)
        else:
            accepted = allocation
    for turn in refused:
        for layer, of_layer, remaining in zip(workload, own, left, strict=True):
            if turn >= len(of_layer):
                continue
            change = {layer.name: of_layer[turn]}
            if accepted is not None:
                question = partial(device.evaluate, workload, accepted.replace(change))
            else:  # no allocation is known in which only this layer could be the reason
                question = partial(device.evaluate, Workload(workload.name, (layer,)), BitAllocation(change))
            if _refuses(question):
                remaining.remove(of_layer[turn])


def _refuses(question: Callable[[], object]) -> bool:
    try:
        question()
    except UnsupportedLayerError:
        raise
    except UnsupportedPrecisionError:
        return True
    return False
