"""How the widths of weights and activations change the work of a processing element.

A model answers for arrays of widths how a matrix product shrinks (`reduction_split`) and how often it must
run (`passes`). Models of another kind override `compute_cycles`. A new model is a subclass in
`PRECISION_MODELS`.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import numpy as np

from amed_env.errors import DeviceError, UnknownNameError
from amed_env.hardware.systolic import Dataflow, IntArray, ceil_divide, checked_product, gemm_cycles


@dataclass(frozen=True)
class SystolicArray:
    """The grid of processing elements: rows, columns and dataflow (`os`, `ws`, `is`)."""

    rows: int
    cols: int
    dataflow: Dataflow


@dataclass(frozen=True)
class GemmShapes:
    """Matrix products of layers: int64 arrays m, n, k of one group, and the number of groups."""

    m: IntArray
    n: IntArray
    k: IntArray
    groups: IntArray


@dataclass(frozen=True)
class PrecisionEffect:
    """What widths do to one processing element: int64 arrays of the widths' shape.

    Attributes:
        reduction_split: Products that it multiplies and adds at once; K shrinks by this, rounded up.
        weight_passes: Parts into which a weight is cut; the product runs once for each.
        activation_passes: Parts into which an activation is cut; the product runs once for each.
    """

    reduction_split: IntArray
    weight_passes: IntArray
    activation_passes: IntArray

    @property
    def passes(self) -> IntArray:
        """Runs of the whole product."""
        return self.weight_passes * self.activation_passes


class PrecisionModel(abc.ABC):
    """Base of the precision models.

    Attributes:
        name: The name in device files.
        widest: The widest operand that the model can run, in bits.
    """

    name: str
    widest: int

    @abc.abstractmethod
    def effect(self, weight_bits: IntArray, activation_bits: IntArray) -> PrecisionEffect:
        """How widths change the work of a processing element.

        Args:
            weight_bits: Widths of weights, 1 to `widest`.
            activation_bits: Widths of activations; broadcasts with `weight_bits`.

        Raises:
            DeviceError: If a width is out of range.
        """

    def compute_cycles(
        self, shapes: GemmShapes, weight_bits: IntArray, activation_bits: IntArray, array: SystolicArray
    ) -> IntArray:
        """Cycles of layers at given widths, without waiting for memory: int64 of the broadcast shape.

        Groups (the channels of a depthwise layer) run one after the other, each a product of its own.
        """
        effect = self.effect(weight_bits, activation_bits)
        k = ceil_divide(shapes.k, effect.reduction_split)
        cycles = gemm_cycles(shapes.m, shapes.n, k, array.rows, array.cols, array.dataflow)
        return checked_product("compute cycles of a layer", shapes.groups, cycles, effect.passes)

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
    widest = 16

    def effect(self, weight_bits: IntArray, activation_bits: IntArray) -> PrecisionEffect:
        """One product at a time in one pass, whatever the widths."""
        weights, _ = self._checked(weight_bits, activation_bits)
        ones = np.ones_like(weights)
        return PrecisionEffect(ones, ones, ones)


class FusionPrecision(PrecisionModel):
    """Fusable processing elements of 8 bits that split into 2-bit bricks (Bit Fusion).

    One element does p = (8 // max(a, 2)) * (8 // max(w, 2)) products of w x a bits at once, summed along K.
    Operands of 9 to 16 bits are cut into two halves that take one pass each: 2 passes for 16 x 8 bits, 4 for
    16 x 16.

    Source: Sharma et al., ISCA 2018, arXiv 1712.01507 (fusion in space, and in time above 8 bits). The rule
    for p is that of the simulator published with it (hsharma35/bitfusion), which stops at 8 bits.
    """

    name = "fusion"
    widest = 16
    brick_bits = 2
    element_bits = 8

    def effect(self, weight_bits: IntArray, activation_bits: IntArray) -> PrecisionEffect:
        """More products at once for narrow operands, more passes for wide ones."""
        weights, activations = self._checked(weight_bits, activation_bits)
        split = self._at_once(weights) * self._at_once(activations)
        return PrecisionEffect(
            split, ceil_divide(weights, self.element_bits), ceil_divide(activations, self.element_bits)
        )

    def _at_once(self, bits: IntArray) -> IntArray:
        return np.asarray(np.maximum(1, self.element_bits // np.maximum(bits, self.brick_bits)))


PRECISION_MODELS: dict[str, type[PrecisionModel]] = {model.name: model for model in (FixedPrecision, FusionPrecision)}
"""Precision models by their name in device files."""


def make_precision_model(name: str) -> PrecisionModel:
    """The precision model of a name.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in PRECISION_MODELS:
        raise UnknownNameError("precision model", name, PRECISION_MODELS)
    return PRECISION_MODELS[name]()
