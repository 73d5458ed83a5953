"""Sums over layers that bound the memory of a network from below."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.memory_limits import memory_rows
from amed_env.problem.memory_plan import NetworkMemory, Result

LAYERS = ("a", "b", "c", "d")
PRECISIONS = tuple(Precision(4, bits) for bits in (2, 3, 4, 8))


@st.composite
def memories(draw):
    results = []
    for number in range(draw(st.integers(1, 8))):
        layer = draw(st.sampled_from(["", *LAYERS]))
        first = draw(st.integers(0, 6))
        ready = [result for result in results if result.last == first]
        over = draw(st.sampled_from([None, *(result.name for result in ready)]))
        last = first + draw(st.integers(0, 3))
        elements = draw(st.integers(1, 40)) * 4
        if over is not None:  # a step writes as many values as it writes over
            elements = next(result.elements for result in ready if result.name == over)
        stored = bool(layer) and draw(st.booleans())
        results.append(Result(f"r{number}", elements, layer, stored, first, last, over, draw(st.booleans())))
    return NetworkMemory(tuple(results), draw(st.integers(0, 50)))


@given(memories(), st.lists(st.sampled_from(range(len(PRECISIONS))), min_size=4, max_size=4))
def test_no_plan_needs_less_than_a_moment(memory, choices):
    rows = memory_rows(memory, LAYERS, PRECISIONS)
    allocation = BitAllocation({name: PRECISIONS[choice] for name, choice in zip(LAYERS, choices, strict=True)})
    sums = rows.fixed + rows.costs[:, np.arange(4), choices].sum(axis=1)
    assert sums.max() <= memory.bytes(allocation)


def test_moments_of_a_chain():
    results = tuple(Result(name, 100, name, False, number, number + 1) for number, name in enumerate(LAYERS))
    rows = memory_rows(NetworkMemory(results, 10), LAYERS, PRECISIONS)
    assert rows.fixed.tolist() == [10.0] * 3  # a and b, b and c, c and d; the ends keep less
    widest = rows.costs[:, :, -1]
    assert sorted(map(tuple, widest.tolist())) == [(0, 0, 100, 100), (0, 100, 100, 0), (100, 100, 0, 0)]
