"""The integer kernels of torch, on tensors of codes.

A kernel multiplies and adds in int32; bias, addition, activation and the rounding to the codes that are written follow
before anything leaves it. These are the oneDNN operators on plain tensors that torch 2.6 and later have for its
compiler; torch's own quantized tensors are deprecated.
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from amed_env.quantization.codes import LARGEST_CODE, Codes, Format, quantize
from amed_env.quantization.layers import SIGNED_ZERO, PreparedWidth, Quantizable, channels_last
from amed_env.quantization.saturation import (
    above_limit,
    halves,
    pair_limit,
    pairs_apart,
    sums_saturate,
    twice,
    two_products_fit,
)

logger = logging.getLogger(__name__)

MOST_PRODUCTS = (2**31 - 1) // (LARGEST_CODE * 128)
"""Products of a code and an 8-bit weight whose sum surely stays within int32, in which the kernels add."""


class _Weights:
    """Weights of a layer for one format of what it reads, packed as they are needed."""

    def __init__(self, kernel: LayerKernel, prepared: PreparedWidth, integers: torch.Tensor, read: Format) -> None:
        self.prepared = prepared
        self._kernel, self._integers, self._read = kernel, integers, read
        self._packed: dict[bool, torch.Tensor] = {}
        self.limit: int | None = None
        """Sum of two codes up to which their products fit; None if all fit."""
        self.halved = False
        """Whether every sample is computed in halves."""

    def packed(self, halved: bool) -> torch.Tensor:
        """The weights as the kernel wants them."""
        if halved not in self._packed:
            integers = halves(self._integers) if halved else self._integers
            self._packed[halved] = self._kernel.pack(integers, self.prepared.scales, self._read.zero_point)
        return self._packed[halved]


class LayerKernel:
    """A convolution or linear layer on codes.

    Args:
        layer: The float layer, for its shape and its options.

    Raises:
        NotImplementedError: If there is no integer kernel for its options; the message says which.
    """

    def __init__(self, layer: Quantizable) -> None:
        if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            what = {"TransposedConvolution": "transposed convolution", "Conv3d": "convolution in three dimensions"}
            name = type(layer).__name__
            raise NotImplementedError(f"torch has no integer kernel for a {what.get(name, name)}")
        products = layer.weight[0].numel()
        if products > MOST_PRODUCTS:
            raise NotImplementedError(f"sums of {products:,} products may leave 32 bits")
        self._linear = isinstance(layer, nn.Linear)
        self._flat = isinstance(layer, nn.Conv1d)
        self._shape: tuple[list[int], list[int], list[int], int] | None = None
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            self._shape = _convolution_shape(layer)
        self._groups = 1 if self._shape is None else self._shape[-1]
        depthwise = self._groups > 1 and layer.weight.shape[1] == 1
        self._saturates = sums_saturate(depthwise)
        self._weight_shape = (*layer.weight.shape[:2], *([1] if self._flat else []), *layer.weight.shape[2:])
        self._has_pairs = not depthwise and layer.weight.shape[1] % 2 == 0
        self._keeps_addend = False
        self._adds_neighbours: dict[tuple[int, ...], bool] = {}
        self._packed: dict[tuple[int, int, int], _Weights] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("kernels hold packed weights, which cannot be pickled; make them anew.")

    def __call__(
        self,
        read: Codes,
        prepared: PreparedWidth,
        weight_bits: int,
        written: Format | None,
        low: float = -math.inf,
        high: float = math.inf,
        addend: Codes | None = None,
    ) -> torch.Tensor:
        """Run the layer.

        Args:
            read: Codes of the shape that the layer reads.
            prepared: The layer at `weight_bits`.
            weight_bits: Width of the weights; at most 8.
            written: Format of the codes that are returned; None returns float32 values, without clamping.
            low: What values are clamped to from below.
            high: And from above.
            addend: Codes that are added before clamping, of the shape that is returned; with `written` only.

        Returns:
            uint8 codes, or float32 values.
        """
        if self._linear and read.tensor.dim() > 2:
            return self._on_rows(read, prepared, weight_bits, written, low, high, addend)
        weights = self._weights(prepared, weight_bits, read.format)
        codes = read.tensor.unsqueeze(2) if self._flat else read.tensor
        codes = codes.contiguous() if self._linear else channels_last(codes)
        if addend is not None and self._flat:
            addend = Codes(addend.tensor.unsqueeze(2), addend.format)

        def run(codes: torch.Tensor, halved: bool, addend: Codes | None) -> torch.Tensor:
            return self._run(codes, read.format, weights, halved, written, low, high, addend)

        again = self._saturated(codes, weights, read.format)
        if again is None:
            result = run(codes, weights.halved, addend)
        else:
            added = None if addend is None else Codes(addend.tensor[again], addend.format)
            result = run(codes, False, addend)
            result[again] = run(codes[again], True, added)
        return result.squeeze(2) if self._flat else result

    def _saturated(self, codes: torch.Tensor, weights: _Weights, read: Format) -> torch.Tensor | None:
        """Places of the samples whose sums may leave 16 bits, or None if there are none.

        If it is most of them, or nothing is known of which products the kernel adds, `weights.halved` is set.
        """
        if weights.limit is None or weights.halved:
            return None
        if not self._has_pairs or not self._adds_pairs(codes, read):
            weights.halved = True
            return None
        places = above_limit(codes, weights.limit).nonzero().squeeze(1)
        if not len(places):
            return None
        if 2 * len(places) > len(codes):
            weights.halved = True
            return None
        # A kernel is made for each number of samples, which takes longer than running it: powers of two are few.
        return torch.cat([places, places[:1].expand(2 ** (len(places) - 1).bit_length() - len(places))])

    def _adds_pairs(self, codes: torch.Tensor, read: Format) -> bool:
        """Whether the kernel for codes of this shape adds products of neighbouring channels, and no others."""
        key = read.zero_point, *codes.shape[1:]
        if key not in self._adds_neighbours:
            apart = pairs_apart(*codes.shape[1:])
            apart = apart if self._linear else channels_last(apart)
            whole = Format(1.0, read.zero_point, 0, LARGEST_CODE)
            exact = True
            for integer in (127, -128):
                integers = torch.full(self._weight_shape, integer, dtype=torch.int8)
                prepared = PreparedWidth(integers, torch.ones(len(integers)), None, 1.0)
                weights = _Weights(self, prepared, integers, whole)
                once, twice_read = (self._run(apart, whole, weights, halved, None) for halved in (False, True))
                exact = exact and torch.equal(once, twice_read)
            self._adds_neighbours[key] = exact
        return self._adds_neighbours[key]

    def _run(
        self,
        codes: torch.Tensor,
        read: Format,
        weights: _Weights,
        halved: bool,
        written: Format | None,
        low: float = -math.inf,
        high: float = math.inf,
        addend: Codes | None = None,
    ) -> torch.Tensor:
        """One call of the kernel, on codes in its layout."""
        if halved:
            codes = twice(codes, -1 if self._linear else 1, self._groups)
            codes = codes if self._linear else channels_last(codes)
        scales, bias = weights.prepared.scales, weights.prepared.bias
        arguments = [codes, read.scale, read.zero_point, weights.packed(halved), scales, _zeros(len(scales))]
        if addend is None:
            return self._plain(arguments, bias, written, low, high)
        assert written is not None
        return self._with_addend(arguments, bias, written, low, high, addend)

    def _on_rows(
        self,
        read: Codes,
        prepared: PreparedWidth,
        weight_bits: int,
        written: Format | None,
        low: float,
        high: float,
        addend: Codes | None,
    ) -> torch.Tensor:
        """A linear layer on any number of axes: the kernel takes rows."""
        shape = read.tensor.shape
        rows = Codes(read.tensor.reshape(-1, shape[-1]), read.format)
        added = None if addend is None else Codes(addend.tensor.reshape(rows.tensor.shape[0], -1), addend.format)
        result = self(rows, prepared, weight_bits, written, low, high, added)
        return result.reshape(*shape[:-1], -1)

    def _plain(
        self, arguments: list[Any], bias: torch.Tensor | None, written: Format | None, low: float, high: float
    ) -> torch.Tensor:
        tail: tuple[Any, ...]
        if written is None:
            tail = (1.0, 0, torch.float32, "none", [], "")
        else:
            tail = (written.scale, written.zero_point, torch.uint8, *_activation(written, low, high), "")
        if self._shape is None:
            return torch.ops.onednn.qlinear_pointwise(*arguments, bias, *tail)  # type: ignore[no-any-return]
        return torch.ops.onednn.qconv2d_pointwise(*arguments, bias, *self._shape, *tail)  # type: ignore[no-any-return]

    def _with_addend(
        self,
        arguments: list[Any],
        bias: torch.Tensor | None,
        written: Format,
        low: float,
        high: float,
        addend: Codes,
    ) -> torch.Tensor:
        least, most = written.clamped(low, high)
        # The kernel adds before it clamps to zero; whatever else it is clamped to follows on the codes, which is the
        # same.
        unary = "relu" if least == written.zero_point > 0 else "none"
        added = addend.tensor
        tail = (written.scale, written.zero_point, torch.uint8, addend.format.scale, addend.format.zero_point)
        # Kernels of some versions of torch write into the tensor that they add, which others may still read.
        added = added.contiguous() if self._linear else channels_last(added)
        added = added if self._keeps_addend else added.clone()
        if self._shape is None:
            result: torch.Tensor = torch.ops.onednn.qlinear_pointwise.binary(
                *arguments, added, bias, *tail, "sum", 1.0, unary, [], ""
            )
        else:
            result = torch.ops.onednn.qconv2d_pointwise.binary(
                *arguments,
                added,
                bias,
                *self._shape,
                *tail,
                "sum",
                1.0,
                unary,
                [],
                "",
            )
        if not self._keeps_addend:
            self._keeps_addend = added.data_ptr() != result.data_ptr() and torch.equal(added, addend.tensor)
        return result if (least, most) == (0, LARGEST_CODE) else result.clamp_(least, most)

    def _weights(self, prepared: PreparedWidth, weight_bits: int, read: Format) -> _Weights:
        """The weights at a width, and what is known of their products with the codes of a format."""
        key = weight_bits, read.zero_point, read.high
        known = self._packed.get(key)
        if known is not None and known.prepared is prepared:
            return known
        integers = prepared.integers.unsqueeze(2) if self._flat else prepared.integers
        weights = _Weights(self, prepared, integers, read)
        if self._saturates and not two_products_fit(read.high, integers):
            limit = pair_limit(read.high, integers) if self._has_pairs else 0
            weights.limit = None if limit >= 2 * read.high and self._has_pairs else limit
        self._packed[key] = weights
        return weights

    def pack(self, integers: torch.Tensor, scales: torch.Tensor, zero_point: int) -> torch.Tensor:
        """Weights as the kernel wants them: int8 (out, in, ...), for codes with this zero point."""
        packed: torch.Tensor
        if self._shape is None:
            packed = torch.ops.onednn.qlinear_prepack(integers, None)
        else:
            packed = torch.ops.onednn.qconv_prepack(integers, scales, 1.0, zero_point, *self._shape, None)
        return packed


def _convolution_shape(layer: nn.Conv1d | nn.Conv2d) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups of a convolution as one in two dimensions."""
    dilation = list(layer.dilation)
    if isinstance(layer.padding, str):
        spans = [d * (size - 1) for d, size in zip(dilation, layer.kernel_size, strict=True)]
        if layer.padding == "same" and any(span % 2 for span in spans):
            raise NotImplementedError("padding 'same' that is not the same on both sides")
        padding = [span // 2 if layer.padding == "same" else 0 for span in spans]
    else:
        padding = list(layer.padding)
    stride = list(layer.stride)
    if isinstance(layer, nn.Conv1d):
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    return stride, padding, dilation, layer.groups


def _activation(written: Format, low: float, high: float) -> tuple[str, list[float]]:
    """The kernel's name and arguments of an activation; saturation to 8 bits comes for nothing."""
    least, most = written.clamped(low, high)
    if (least, most) == (0, LARGEST_CODE):
        return "none", []
    if most == LARGEST_CODE and least == written.zero_point:
        return "relu", []
    return "hardtanh", [(code - written.zero_point) * written.scale for code in (least, most)]


@lru_cache(maxsize=256)
def _zeros(channels: int) -> torch.Tensor:
    return torch.zeros(channels, dtype=torch.int64)


class Requantizer:
    """Rounds codes to another grid: a depthwise 1 x 1 convolution with weights 1, several times as fast as float."""

    def __init__(self) -> None:
        self._packed: dict[tuple[int, int], torch.Tensor] = {}
        self._ones: dict[int, torch.Tensor] = {}
        self._trusted: dict[tuple[Format, Format], bool] = {}

    def __call__(self, codes: Codes, written: Format) -> Codes:
        """The same values, as nearly as the other format has them."""
        if codes.format == written:
            return codes
        # Where a ratio of scales makes exact ties the kernel may round otherwise than float arithmetic: checked code by
        # code.
        if codes.tensor.dim() != 4 or not self._trust(codes.format, written):
            return quantize(codes.values(), written)
        return Codes(self._convolve(codes.tensor, codes.format, written), written)

    def _convolve(self, tensor: torch.Tensor, read: Format, written: Format) -> torch.Tensor:
        channels = tensor.shape[1]
        key = channels, read.zero_point
        shape = ([1, 1], [0, 0], [1, 1], channels)
        if key not in self._packed:
            self._ones[channels] = torch.ones(channels)
            integers = torch.ones(channels, 1, 1, 1, dtype=torch.int8)
            self._packed[key] = torch.ops.onednn.qconv_prepack(
                integers, self._ones[channels], 1.0, read.zero_point, *shape, None
            )
        name, arguments = _activation(written, -math.inf, math.inf)
        result: torch.Tensor = torch.ops.onednn.qconv2d_pointwise(
            channels_last(tensor),
            read.scale,
            read.zero_point,
            self._packed[key],
            self._ones[channels],
            _zeros(channels),
            None,
            *shape,
            written.scale,
            written.zero_point,
            torch.uint8,
            name,
            arguments,
            "",
        )
        return result

    def _trust(self, read: Format, written: Format) -> bool:
        """Whether the kernel rounds every code as float arithmetic does: scales of a simple ratio have exact ties."""
        pair = read, written
        if pair not in self._trusted:
            every = torch.arange(read.low, read.high + 1, dtype=torch.uint8).reshape(1, 1, 1, -1)
            expected = quantize(Codes(every, read).values(), written).tensor
            self._trusted[pair] = torch.equal(self._convolve(every, read, written), expected)
        return self._trusted[pair]


@lru_cache(maxsize=1)
def integer_kernels_are_exact() -> bool:
    """Whether this machine has integer kernels, and what they return is exact; see `saturation`."""
    if not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        return False
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(32, 32, 3, padding=1, bias=False)  # sums stay below 2^24, which float32 holds exactly
    try:
        kernel = LayerKernel(layer)
        # Extreme values saturate if anything does; random ones find every other fault. A kernel that is wrong once is
        # not used.
        for number, (code, integer) in enumerate(((LARGEST_CODE, 127), (LARGEST_CODE, -128), (None, None))):
            if code is None or integer is None:
                read = torch.randint(0, LARGEST_CODE + 1, (2, 32, 9, 9), generator=generator).to(torch.uint8)
                weight = torch.randint(-128, 128, layer.weight.shape, generator=generator).to(torch.int8)
            else:
                read = torch.full((2, 32, 9, 9), code, dtype=torch.uint8)
                weight = torch.full(layer.weight.shape, integer, dtype=torch.int8)
            for zero_point in (0, SIGNED_ZERO):
                codes = Codes(read, Format(1.0, zero_point, 0, LARGEST_CODE))
                found = kernel(codes, PreparedWidth(weight, torch.ones(32), None, 1.0), number, None)
                expected = F.conv2d(read.double() - zero_point, weight.double(), padding=1)
                if not torch.equal(found.double(), expected):
                    logger.info("the integer kernels of this processor are not exact; networks are evaluated in float")
                    return False
    except RuntimeError as error:
        logger.info("this build of torch has no integer kernels: %s", error)
        return False
    return True
