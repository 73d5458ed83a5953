"""How the widths of weights and activations change the work of a processing element.

A model answers for arrays of widths how a matrix product shrinks (`reduction_split`), how often it must run
(`passes`), and how often operands are read again for it. A new model is a subclass in `PRECISION_MODELS`.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import numpy as np

from amed_env.errors import DeviceError, UnknownNameError
from amed_env.hardware.files.device_sections import SerialOperands
from amed_env.hardware.simulator.systolic import IntArray, ceil_divide


@dataclass(frozen=True)
class PrecisionEffect:
    """What widths do to one processing element: int64 arrays of the widths' shape.

    Attributes:
        reduction_split: Products that it multiplies and adds at once; K shrinks by this, rounded up.
        passes: Runs of the whole product, one for each pair of parts into which the operands are cut.
        ifmap_rereads: How often activations are read from their buffer for all passes together.
        weight_rereads: The same for weights.
    """

    reduction_split: IntArray
    passes: IntArray
    ifmap_rereads: IntArray
    weight_rereads: IntArray


class PrecisionModel(abc.ABC):
    """Base of the precision models.

    Attributes:
        name: The name in device files.
        widest: The widest operand that the model can run, in bits.
    """

    name: str
    widest: int = 16

    @abc.abstractmethod
    def effect(self, weight_bits: IntArray, activation_bits: IntArray) -> PrecisionEffect:
        """How widths change the work of a processing element.

        Args:
            weight_bits: Widths of weights, 1 to `widest`.
            activation_bits: Widths of activations; broadcasts with `weight_bits`.

        Raises:
            DeviceError: If a width is out of range.
        """

    def _checked(self, weight_bits: IntArray, activation_bits: IntArray) -> tuple[IntArray, IntArray]:
        weights, activations = np.broadcast_arrays(weight_bits, activation_bits)
        for bits in (weights, activations):
            if bits.size and (bits.min() < 1 or bits.max() > self.widest):
                wrong = bits.min() if bits.min() < 1 else bits.max()
                raise DeviceError(
                    f"precision model {self.name!r} runs 1 to {self.widest} bits, not {wrong}; "
                    "leave that width out of the device's list."
                )
        return weights.astype(np.int64), activations.astype(np.int64)


class FixedPrecision(PrecisionModel):
    """Processing elements of one width: narrower operands are padded and only save memory traffic."""

    name = "fixed"

    def effect(self, weight_bits: IntArray, activation_bits: IntArray) -> PrecisionEffect:
        """One product at a time in one pass, whatever the widths."""
        weights, _ = self._checked(weight_bits, activation_bits)
        ones = np.ones_like(weights)
        return PrecisionEffect(ones, ones, ones, ones)


class FusionPrecision(PrecisionModel):
    """Fusable processing elements of 8 bits that split into 2-bit bricks (Bit Fusion).

    One element does p = (8 // max(a, 2)) * (8 // max(w, 2)) products of w x a bits at once, summed along K.
    Operands of 9 to 16 bits are cut into two halves that take one pass each: 2 passes for 16 x 8 bits, 4 for
    16 x 16; each half is read again for every part of the other operand.

    Source: Sharma et al., ISCA 2018, arXiv 1712.01507 (fusion in space, and in time above 8 bits). The rule
    for p is that of the simulator published with it (hsharma35/bitfusion), which stops at 8 bits.
    """

    name = "fusion"
    brick_bits = 2
    element_bits = 8

    def effect(self, weight_bits: IntArray, activation_bits: IntArray) -> PrecisionEffect:
        """More products at once for narrow operands, more passes for wide ones."""
        weights, activations = self._checked(weight_bits, activation_bits)
        split = self._at_once(weights) * self._at_once(activations)
        # Two halves and no more: the published simulator stops at 8 bits, the hardware fuses in time above.
        weight_parts, activation_parts = (ceil_divide(bits, self.element_bits) for bits in (weights, activations))
        passes = weight_parts * activation_parts
        return PrecisionEffect(split, passes, ifmap_rereads=weight_parts, weight_rereads=activation_parts)

    def _at_once(self, bits: IntArray) -> IntArray:
        # Whole division: 3 bits take a 4-bit slot, 5 to 7 bits a whole element; below 2 bits a brick is the least.
        return np.asarray(np.maximum(1, self.element_bits // np.maximum(bits, self.brick_bits)))


class SerialPrecision(PrecisionModel):
    """Processing elements that take one operand, or both, bit by bit: cycles grow with w, a, or w x a.

    An element adds `lanes` products at once; a bit of the serial operands is one pass. Activations that are
    taken bit by bit run past weights that stay in registers, so that weights are read once; where weights are
    serial too, the activations run past once for every bit of them.

    Args:
        operands: Which operands are serial.
        lanes: Products that an element adds at once.

    Source: Judd et al., MICRO 2016 (Stripes: activations, cycles proportional to a); Sharify et al., DAC 2018,
    arXiv 1706.07853 (Loom: both, cycles proportional to w x a).
    """

    name = "serial"

    def __init__(self, operands: SerialOperands = "both", lanes: int = 1) -> None:
        self.operands = operands
        self.lanes = lanes

    def effect(self, weight_bits: IntArray, activation_bits: IntArray) -> PrecisionEffect:
        """As many passes as there are pairs of bits."""
        weights, activations = self._checked(weight_bits, activation_bits)
        ones = np.ones_like(weights)
        weight_passes = weights if self.operands != "activations" else ones
        activation_passes = activations if self.operands != "weights" else ones
        return PrecisionEffect(
            ones * self.lanes, weight_passes * activation_passes, ifmap_rereads=weight_passes, weight_rereads=ones
        )


PRECISION_MODELS: dict[str, type[PrecisionModel]] = {
    model.name: model for model in (FixedPrecision, FusionPrecision, SerialPrecision)
}
"""Precision models of arrays by their name in device files."""


def make_precision_model(
    name: str, serial_operands: SerialOperands | None = None, serial_lanes: int | None = None
) -> PrecisionModel:
    """The precision model of a name.

    Args:
        name: As in a device file.
        serial_operands: For the model `serial`, which operands are taken bit by bit; by default both.
        serial_lanes: For the model `serial`, products that an element adds at once; by default one.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in PRECISION_MODELS:
        raise UnknownNameError("precision model", name, PRECISION_MODELS)
    if name == SerialPrecision.name:
        return SerialPrecision(serial_operands or "both", serial_lanes or 1)
    return PRECISION_MODELS[name]()
