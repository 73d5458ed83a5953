"""Closed forms against published values and against a slow count of what every processing element does."""

import numpy as np
import pytest
from hardware_samples import RESNET18, RESNET20
from hypothesis import given, settings
from hypothesis import strategies as st

from amed_env.errors import DeviceError, InputError, WorkloadError
from amed_env.hardware import gemm_cycles, gemm_sram_accesses

# Total cycles reported by runs of SCALE-Sim 3.0.0: dataflow, rows, cols, m, n, k, cycles.
SCALE_SIM = [
    ("is", 1, 1, 40, 33, 105, 142799),
    ("is", 1, 1, 558, 1, 9, 10043),
    ("os", 1, 1, 81, 31, 65, 163214),
    ("os", 1, 1, 1, 1, 75, 74),
    ("ws", 1, 1, 36, 70, 160, 414399),
    ("ws", 1, 1, 558, 1, 9, 5030),
    ("is", 32, 32, 40, 33, 105, 1015),
    ("is", 32, 32, 81, 31, 65, 1124),
    ("is", 32, 32, 1, 1, 75, 284),
    ("is", 32, 32, 558, 1, 9, 1709),
    ("is", 32, 32, 1, 100, 300, 1939),
    ("is", 32, 32, 1, 1, 1, 94),
    ("os", 32, 32, 40, 33, 105, 667),
    ("os", 32, 32, 558, 1, 9, 1277),
    ("os", 32, 32, 36, 70, 160, 1331),
    ("os", 32, 32, 1, 100, 300, 1447),
    ("os", 32, 32, 1, 1, 1, 62),
    ("ws", 32, 32, 40, 33, 105, 1071),
    ("ws", 32, 32, 81, 31, 65, 524),
    ("ws", 32, 32, 558, 1, 9, 651),
    ("ws", 32, 32, 36, 70, 160, 1949),
    ("ws", 32, 32, 1, 100, 300, 3799),
    ("is", 8, 3, 40, 33, 105, 9799),
    ("is", 8, 3, 36, 70, 160, 20879),
    ("is", 8, 3, 1, 100, 300, 4445),
    ("os", 8, 3, 81, 31, 65, 8953),
    ("os", 8, 3, 558, 1, 9, 1259),
    ("os", 8, 3, 1, 1, 1, 9),
    ("ws", 8, 3, 40, 33, 105, 8777),
    ("ws", 8, 3, 36, 70, 160, 25439),
    ("ws", 8, 3, 1, 100, 300, 23255),
    ("ws", 8, 3, 1, 1, 1, 17),
    ("os", 32, 32, 12100, 64, 147, 158421),
    ("os", 32, 32, 2916, 64, 576, 117391),
    ("os", 32, 32, 784, 128, 576, 63799),
    ("os", 32, 32, 841, 128, 64, 13607),
    ("os", 32, 32, 144, 256, 2304, 94639),
    ("os", 32, 32, 25, 512, 4608, 74719),
    ("os", 32, 32, 1, 1000, 512, 18367),
    ("ws", 16, 16, 784, 128, 1152, 478079),
    ("ws", 16, 16, 1, 10, 64, 187),
]

sizes = st.integers(1, 20)
array_sizes = st.integers(1, 6)
dataflows = st.sampled_from(["os", "ws", "is"])


def spans(total, tile):
    """Sizes of the tiles into which a dimension is cut."""
    return [min(tile, total - start) for start in range(0, total, tile)]


def count_cycles(m, n, k, rows, cols, dataflow):
    """Cycles by the last event of every fold.

    A value moves one processing element a cycle, rightwards or downwards. Output stationary: element (r, c)
    takes its i-th pair of operands in cycle r + c + i. Otherwise one operand is first shifted in row by row,
    which takes as many cycles as there are rows; then the i-th vector meets element (r, c) in cycle rows + r
    + c + i. The whole grid takes part, as in SCALE-Sim.
    """
    if dataflow == "os":
        folds, vectors, preload = [(a, b) for a in spans(m, rows) for b in spans(n, cols)], k, 0
    elif dataflow == "ws":
        folds, vectors, preload = [(a, b) for a in spans(k, rows) for b in spans(n, cols)], m, rows
    else:
        folds, vectors, preload = [(a, b) for a in spans(k, rows) for b in spans(m, cols)], n, rows
    time = 0
    for _ in folds:
        last = max(preload + r + c + i for r in range(rows) for c in range(cols) for i in range(vectors))
        time += last + 1
    return time - 1  # cycles are numbered from zero


def count_accesses(m, n, k, rows, cols, dataflow):
    """Elements that enter and leave the array, fold by fold."""
    ifmap = weights = ofmap = 0
    if dataflow == "os":
        for pixels in spans(m, rows):
            for filters in spans(n, cols):
                ifmap += pixels * k
                weights += filters * k
                ofmap += pixels * filters
    elif dataflow == "ws":
        for depth in spans(k, rows):
            for filters in spans(n, cols):
                weights += depth * filters
                ifmap += m * depth
                ofmap += m * filters
    else:
        for depth in spans(k, rows):
            for pixels in spans(m, cols):
                ifmap += depth * pixels
                weights += n * depth
                ofmap += n * pixels
    return ifmap, weights, ofmap


@pytest.mark.parametrize(("dataflow", "rows", "cols", "m", "n", "k", "cycles"), SCALE_SIM)
def test_cycles_equal_scale_sim(dataflow, rows, cols, m, n, k, cycles):
    assert gemm_cycles(m, n, k, rows, cols, dataflow) == cycles


@pytest.mark.parametrize(
    ("workload", "array", "macs", "cycles"),
    [(RESNET18, 32, 1_814_073_344, 2_133_315), (RESNET20, 8, 40_551_040, 674_952)],
)
def test_whole_networks(workload, array, macs, cycles):
    assert workload.macs == macs
    m, n, k = (np.array([getattr(layer, name) for layer in workload]) for name in "mnk")
    assert gemm_cycles(m, n, k, array, array, "os").sum() == cycles


@settings(deadline=None)
@given(sizes, sizes, sizes, array_sizes, array_sizes, dataflows)
def test_cycles_equal_a_slow_count(m, n, k, rows, cols, dataflow):
    assert gemm_cycles(m, n, k, rows, cols, dataflow) == count_cycles(m, n, k, rows, cols, dataflow)


@settings(deadline=None)
@given(sizes, sizes, sizes, array_sizes, array_sizes, dataflows)
def test_without_filling_only_streaming_takes_time(m, n, k, rows, cols, dataflow):
    streamed, down, across = {"os": (k, m, n), "ws": (m, k, n), "is": (n, k, m)}[dataflow]
    cycles = len(spans(down, rows)) * len(spans(across, cols)) * streamed
    assert gemm_cycles(m, n, k, rows, cols, dataflow, fill_and_drain=False) == cycles


@settings(deadline=None)
@given(sizes, sizes, sizes, array_sizes, array_sizes, dataflows)
def test_accesses_equal_a_slow_count(m, n, k, rows, cols, dataflow):
    assert gemm_sram_accesses(m, n, k, rows, cols, dataflow) == count_accesses(m, n, k, rows, cols, dataflow)


@settings(deadline=None)
@given(sizes, sizes, sizes, array_sizes, array_sizes, dataflows, st.integers(1, 30))
def test_cycles_never_fall_as_a_product_grows(m, n, k, rows, cols, dataflow, more):
    cycles = gemm_cycles(m, n, k, rows, cols, dataflow)
    for bigger in ((m + more, n, k), (m, n + more, k), (m, n, k + more)):
        assert gemm_cycles(*bigger, rows, cols, dataflow) >= cycles


def test_arrays_broadcast_and_keep_their_type():
    m = np.array([1, 784], dtype=np.int32).reshape(2, 1)
    n = np.array([10, 128, 1], dtype=np.uint8)
    cycles = gemm_cycles(m, n, 64, 16, 16, "ws")
    assert cycles.shape == (2, 3) and cycles.dtype == np.int64
    assert cycles[0, 0] == 187
    assert gemm_cycles(np.array([], dtype=np.int64), 1, 1, 4, 4, "os").shape == (0,)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "4", None, float("nan"), 2**70, 2**63])
@pytest.mark.parametrize("position", range(5))
def test_senseless_sizes_are_refused(wrong, position):
    arguments = [4, 4, 4, 4, 4]
    arguments[position] = wrong
    error = WorkloadError if position < 3 else DeviceError
    for function in (gemm_cycles, gemm_sram_accesses):
        with pytest.raises(error, match="mnk"[position] if position < 3 else "rows|cols"):
            function(*arguments, "os")


def test_unknown_dataflow_is_refused():
    with pytest.raises(DeviceError, match=r"'rs' is unknown; use one of os, ws, is"):
        gemm_cycles(1, 1, 1, 1, 1, "rs")
    with pytest.raises(InputError):
        gemm_sram_accesses(1, 1, 1, 1, 1, None)


def test_shapes_that_do_not_broadcast_are_refused():
    with pytest.raises(WorkloadError, match="do not broadcast"):
        gemm_cycles(np.ones(2, int), np.ones(3, int), 1, 1, 1, "os")


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
def test_overflow_is_never_silent(dataflow):
    huge = 2**40
    with pytest.raises(WorkloadError, match="int64"):
        gemm_cycles(huge, huge, huge, 1, 1, dataflow)
    with pytest.raises(WorkloadError, match="int64"):
        gemm_sram_accesses(huge, huge, huge, 1, 1, dataflow)
    with pytest.raises(WorkloadError, match="int64"):
        gemm_cycles(2**62, 2**62, 2**62, 2**62, 2**62, dataflow)


@settings(deadline=None)
@given(*[st.integers(1, 2**63 - 1)] * 3, *[st.integers(1, 2**63 - 1)] * 2, dataflows)
def test_any_size_is_exact_or_refused(m, n, k, rows, cols, dataflow):
    def ceil(a, b):
        return -(-a // b)

    expected = {
        "os": ceil(m, rows) * ceil(n, cols) * (k + rows + cols - 2) - 1,
        "ws": ceil(k, rows) * ceil(n, cols) * (m + 2 * rows + cols - 2) - 1,
        "is": ceil(k, rows) * ceil(m, cols) * (n + 2 * rows + cols - 2) - 1,
    }[dataflow]
    try:
        assert int(gemm_cycles(m, n, k, rows, cols, dataflow)) == expected
    except WorkloadError:
        assert expected > 9e18


def test_large_numbers_that_never_meet_do_not_overflow():
    # The largest m and the largest n together would be 2^80 folds; m x n is at most 2^41 in either place.
    m, n = np.array([2**40, 2]), np.array([2, 2**40])
    assert gemm_cycles(m, n, 3, 1, 1, "os").tolist() == [2**41 * 3 - 1] * 2
    with pytest.raises(WorkloadError, match="int64"):
        gemm_cycles(m, n[::-1], 3, 1, 1, "os")
