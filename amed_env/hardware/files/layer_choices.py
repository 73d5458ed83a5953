"""Which pairs of widths a file says that layers can run at: by kind, and for single layers by name or position.

A pair is written `8` for both operands, `w4a8`, `4/8`, or `[4, 8]`; a kind or a layer has one of them, or a list.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from amed_env.errors import AllocationError
from amed_env.hardware.files.yaml_faults import Text
from amed_env.hardware.protocol import HardwareBackend
from amed_env.problem.allocation import Precision, parse_precision
from amed_env.problem.pins import FIRST, LAST
from amed_env.problem.workload import KINDS, LayerKind, Workload


def _pair(value: Any) -> Precision:
    try:
        return parse_precision(value, "a pair of widths")
    except AllocationError as error:
        raise ValueError(str(error)) from error


def _listed(value: Any) -> Any:
    """One pair alone as a list of one."""
    return value if isinstance(value, list | tuple) and not isinstance(value, Precision) else [value]


def _distinct(pairs: tuple[Precision, ...]) -> tuple[Precision, ...]:
    if len(set(pairs)) != len(pairs):
        raise ValueError("a pair is repeated")
    return tuple(sorted(pairs))


def _of_all_kinds(value: Any) -> Any:
    """Pairs without kinds are those of every kind."""
    return value if value is None or isinstance(value, Mapping) else dict.fromkeys(KINDS, value)


Pair = Annotated[Precision, BeforeValidator(_pair)]
Pairs = Annotated[tuple[Pair, ...], BeforeValidator(_listed), Field(min_length=1), AfterValidator(_distinct)]
PairsByKind = Annotated[dict[LayerKind, Pairs], BeforeValidator(_of_all_kinds), Field(min_length=1)]
"""Pairs by kind of layer; kinds that are not named have all pairs of their widths."""
PairsByLayer = Annotated[dict[Text, Pairs], Field(min_length=1)]
"""Pairs of single layers by name, `first` or `last`; a layer of a network that is called so is meant by it."""


def check_pairs(pairs: Mapping[LayerKind, tuple[Precision, ...]] | None, widths: Sequence[Collection[int]]) -> None:
    """Check that pairs have widths that are declared.

    Args:
        pairs: Pairs by kind of layer.
        widths: Widths of weights, and of activations.

    Raises:
        ValueError: If one has another width.
    """
    for kind, of_kind in (pairs or {}).items():
        for pair in of_kind:
            for operand, bits, declared in zip(("weights", "activations"), pair, widths, strict=True):
                if bits not in declared:
                    raise ValueError(f"pair {pair} of kind {kind!r} has {bits}-bit {operand}, which are not declared")


class LayerwiseBackend(HardwareBackend):
    """A device whose file may limit single layers.

    Attributes:
        layer_pairs: Pairs by name of a layer, `first` or `last`; empty for no such limits.
    """

    layer_pairs: Mapping[str, tuple[Precision, ...]] = {}

    def allowed_precisions(
        self, workload: Workload, precisions: Sequence[Precision]
    ) -> Sequence[Collection[Precision]]:
        """What the file says of a layer's kind, and of the very layer."""
        allowed = [set(of_layer) for of_layer in super().allowed_precisions(workload, precisions)]
        position = {name: row for row, name in enumerate(workload.layer_names)}
        ends = {FIRST: 0, LAST: len(workload) - 1}
        for name, pairs in self.layer_pairs.items():
            row = position.get(name, ends.get(name))
            if row is not None:  # a file may name layers of other networks
                allowed[row] &= set(pairs)
        return allowed
