"""Cycles and on-chip memory accesses of matrix products on a systolic array: closed forms over numpy arrays.

A product of (m x k) by (k x n) is cut into folds that fill the array of `rows` x `cols` processing elements.
Every fold costs the same number of cycles (fill, stream, drain); the last cycle of the last fold is not
counted, as SCALE-Sim counts from zero. Memory never stalls the array here; bandwidth is added by the
simulator.

Source of the forms: SCALE-Sim 3.0.0 (Samajdar et al., ISPASS 2020, arXiv 1811.02883), whose reported total
cycles they equal; `docs/hardware.md` has the comparison.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from amed_env.errors import DeviceError, InputError, WorkloadError

Dataflow = Literal["os", "ws", "is"]
DATAFLOWS: tuple[Dataflow, ...] = get_args(Dataflow)
"""Output, weight and input stationary."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

# Products are checked in float64, whose rounding could hide a value just beyond the largest int64.
_SAFE_LIMIT = float(2**63) * (1 - 1e-9)


class SramAccesses(NamedTuple):
    """Elements that cross the edge of the array: int64 arrays of the broadcast shape.

    Attributes:
        ifmap_reads: Activations read from their buffer.
        weight_reads: Weights read from their buffer.
        ofmap_writes: Outputs or partial sums written to their buffer.
    """

    ifmap_reads: IntArray
    weight_reads: IntArray
    ofmap_writes: IntArray


def checked_product(what: str, *factors: npt.ArrayLike) -> IntArray:
    """The element-wise product of non-negative int64 arrays, with overflow as an error.

    Args:
        what: What is being computed, for the message.
        *factors: Arrays that broadcast.

    Returns:
        The product as int64.

    Raises:
        WorkloadError: If a product is beyond int64.
    """
    values = [np.asarray(factor, dtype=np.int64) for factor in factors]
    if all(array.size for array in values) and math.prod(float(array.max()) for array in values) >= _SAFE_LIMIT:
        # The largest factors need not meet in one place.
        with np.errstate(over="ignore"):
            estimate = reduce(np.multiply, (array.astype(np.float64) for array in values))
        _refuse_overflow(what, np.asarray(estimate))
    return np.asarray(reduce(np.multiply, values))


def checked_sum(what: str, *terms: npt.ArrayLike) -> IntArray:
    """The element-wise sum of non-negative int64 arrays, with overflow as an error.

    Args:
        what: What is being computed, for the message.
        *terms: Arrays that broadcast.

    Returns:
        The sum as int64.

    Raises:
        WorkloadError: If a sum is beyond int64.
    """
    values = [np.asarray(term, dtype=np.int64) for term in terms]
    if all(array.size for array in values) and sum(float(array.max()) for array in values) >= _SAFE_LIMIT:
        _refuse_overflow(what, np.asarray(reduce(np.add, (array.astype(np.float64) for array in values))))
    return np.asarray(reduce(np.add, values))


def float_to_int64(what: str, values: npt.ArrayLike) -> IntArray:
    """Whole numbers as int64, with overflow as an error.

    Args:
        what: What they are, for the message.
        values: Non-negative whole numbers, as floats or as Python integers of any size.

    Raises:
        WorkloadError: If a number is beyond int64.
    """
    array = np.asarray(values)
    _refuse_overflow(what, array.astype(np.float64))
    return array.astype(np.int64)


def ceil_divide(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> IntArray:
    """Quotient of positive integers, rounded up: int64; does not overflow."""
    return np.asarray(-(-np.asarray(numerator, dtype=np.int64) // np.asarray(denominator, dtype=np.int64)))


def gemm_cycles(
    m: npt.ArrayLike,
    n: npt.ArrayLike,
    k: npt.ArrayLike,
    rows: npt.ArrayLike,
    cols: npt.ArrayLike,
    dataflow: str,
    *,
    fill_and_drain: bool = True,
) -> IntArray:
    """Cycles of (m x k) by (k x n) on a systolic array that never waits for memory.

    Args:
        m: Output pixels, times the batch; integers, any shape.
        n: Filters; broadcasts with the others.
        k: Products summed for one output.
        rows: Rows of the array.
        cols: Columns of the array.
        dataflow: `"os"`, `"ws"` or `"is"`.
        fill_and_drain: Whether every fold fills and drains the array on its own. If not, folds follow each
            other without a gap, as the simulator of Bit Fusion counts, and only streaming takes time.

    Returns:
        Cycles as int64, of the broadcast shape.

    Raises:
        WorkloadError: If m, n or k is no positive integer, or the result is beyond int64.
        DeviceError: If rows or cols is no positive integer, or the dataflow is unknown.

    Example:
        >>> int(gemm_cycles(784, 128, 1152, 16, 16, "ws"))
        478079
    """
    m, n, k, rows, cols = _checked_inputs(m, n, k, rows, cols, dataflow)
    # Two of the three dimensions lie along rows and columns, the third one streams through.
    streamed, down, across = {"os": (k, m, n), "ws": (m, k, n), "is": (n, k, m)}[dataflow]
    folds = checked_product("folds", ceil_divide(down, rows), ceil_divide(across, cols))
    if not fill_and_drain:
        return checked_product("cycles of a matrix product", folds, streamed)
    # Filling a stationary operand takes one cycle a row; outputs that stay in place need no such step.
    preload = () if dataflow == "os" else (rows,)
    # Operands enter skewed: the last of R rows and C columns starts R - 1 and C - 1 cycles after the first.
    fold_cycles = checked_sum("cycles of one fold", streamed, rows, cols, *preload) - 2
    # SCALE-Sim numbers cycles from zero and reports the number of the last one.
    return checked_product("cycles of a matrix product", folds, fold_cycles) - 1


def gemm_sram_accesses(
    m: npt.ArrayLike, n: npt.ArrayLike, k: npt.ArrayLike, rows: npt.ArrayLike, cols: npt.ArrayLike, dataflow: str
) -> SramAccesses:
    """On-chip buffer accesses, in elements, of (m x k) by (k x n) on a systolic array.

    Args, errors: as `gemm_cycles`.

    Returns:
        Reads and writes as int64 arrays of the broadcast shape.
    """
    m, n, k, rows, cols = _checked_inputs(m, n, k, rows, cols, dataflow)
    # The stationary tensor moves once; another one moves again for every fold that does not lie along it.
    ifmap_moves = weight_moves = ofmap_moves = np.ones_like(m)
    if dataflow != "is":
        ifmap_moves = ceil_divide(n, cols)
    if dataflow != "ws":
        weight_moves = ceil_divide(m, rows if dataflow == "os" else cols)
    if dataflow != "os":
        ofmap_moves = ceil_divide(k, rows)
    return SramAccesses(
        checked_product("activation reads", ifmap_moves, m, k),
        checked_product("weight reads", weight_moves, k, n),
        checked_product("output writes", ofmap_moves, m, n),
    )


def _checked_inputs(
    m: npt.ArrayLike, n: npt.ArrayLike, k: npt.ArrayLike, rows: npt.ArrayLike, cols: npt.ArrayLike, dataflow: str
) -> tuple[IntArray, ...]:
    if dataflow not in DATAFLOWS:
        raise DeviceError(f"dataflow {dataflow!r} is unknown; use one of {', '.join(DATAFLOWS)}.")
    named = {"m": m, "n": n, "k": k, "rows": rows, "cols": cols}
    checked = []
    for name, value in named.items():
        error = DeviceError if name in ("rows", "cols") else WorkloadError
        checked.append(_positive_int64(name, value, error))
    try:
        return tuple(np.asarray(array) for array in np.broadcast_arrays(*checked))
    except ValueError as fault:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(named, checked, strict=True))
        raise WorkloadError(f"matrix product: the shapes do not broadcast: {shapes}.") from fault


def _positive_int64(name: str, value: npt.ArrayLike, error: type[InputError]) -> IntArray:
    array = np.asarray(value)
    if array.dtype.kind not in "iu" and array.size:
        raise error(f"matrix product: {name} has type {array.dtype}, expected integers that fit into int64.")
    if array.size and (array.min() < 1 or array.max() > np.iinfo(np.int64).max):
        wrong = array.min() if array.min() < 1 else array.max()
        raise error(f"matrix product: {name} is {wrong}, expected a positive integer that fits into int64.")
    return array.astype(np.int64)


def _refuse_overflow(what: str, estimate: FloatArray) -> None:
    if estimate.size and not float(estimate.max()) < _SAFE_LIMIT:
        raise WorkloadError(
            f"{what}: about {float(estimate.max()):.3g} is beyond what int64 can count (9.2e18); "
            "check the layer sizes, or split the layer."
        )
