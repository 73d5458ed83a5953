"""Memory plans: nothing that lives at the same time overlaps, and little is wasted."""

from hypothesis import given
from hypothesis import strategies as st

from amed_env.problem.memory_plan import ALIGNMENT, Buffer, memory_size, plan_memory


@st.composite
def networks(draw):
    """Chains with results that live longer, some of which are written over."""
    buffers = {}
    for number in range(draw(st.integers(0, 12))):
        first = draw(st.integers(0, 12))
        over = draw(st.sampled_from([None, *buffers]))
        buffers[f"b{number}"] = Buffer(
            draw(st.integers(1, 1_000)),
            draw(st.sampled_from([2, 3, 4, 7, 8, 32])),
            first,
            first + draw(st.integers(0, 6)),
            over,
            draw(st.booleans()),
        )
    return buffers


def size_in(plan, buffers, name):
    return buffers[name].size(name in plan.packed)


@given(networks())
def test_nothing_that_lives_at_the_same_time_overlaps(buffers):
    plan = plan_memory(buffers)
    places = {name: range(plan.offsets[name], plan.offsets[name] + size_in(plan, buffers, name)) for name in buffers}
    for one in buffers:
        assert plan.offsets[one] % ALIGNMENT == 0 and places[one].stop <= plan.size
        for other in buffers:
            together = buffers[one].first <= buffers[other].last and buffers[other].first <= buffers[one].last
            apart = places[one].stop <= places[other].start or places[other].stop <= places[one].start
            if one != other and together and not apart:
                assert is_written_over(plan, buffers, one, other) or is_written_over(plan, buffers, other, one)


def is_written_over(plan, buffers, written, read):
    """The rule, for two results that overlap: the last reader writes, from the same place on, nothing wider."""
    new, old = buffers[written], buffers[read]
    widths = [
        buffer.bits if name in plan.packed or buffer.bits > 8 else 8 for name, buffer in ((written, new), (read, old))
    ]
    return (
        new.over == read
        and old.last == new.first
        and plan.offsets[written] == plan.offsets[read]
        and (widths[0] == widths[1] or (new.narrower and widths[0] < widths[1]))
    )


@given(networks())
def test_packing_and_writing_over_never_need_more(buffers):
    plan = plan_memory(buffers)
    alone = {name: Buffer(b.size(False), 8, b.first, b.last) for name, b in buffers.items()}
    assert plan.size <= plan_memory(alone).size
    for name in plan.packed:
        assert buffers[name].bits < 8


@given(networks())
def test_without_writing_over_the_arena_holds_all_that_lives(buffers):
    alone = {name: Buffer(b.elements, b.bits, b.first, b.last) for name, b in buffers.items()}
    plan = plan_memory(alone)
    for step in range(20):
        alive = [name for name, buffer in alone.items() if buffer.first <= step <= buffer.last]
        assert plan.size >= sum(size_in(plan, alone, name) for name in alive)


def test_a_chain_needs_its_two_largest_neighbours():
    sizes = [100, 400, 300, 200, 40]
    plan = plan_memory({str(i): Buffer(size, 8, i, i + 1) for i, size in enumerate(sizes)})
    assert plan.size == 700
    assert plan_memory({}).size == 0


def test_codes_are_packed_only_where_the_largest_moment_is():
    buffers = {
        "wide": Buffer(1_000, 8, 0, 1),
        "narrow": Buffer(1_000, 4, 1, 2),
        "small": Buffer(100, 4, 2, 3),
    }
    plan = plan_memory(buffers)
    assert plan.size == 1_500
    assert plan.packed == {"narrow"}


def test_a_sum_is_written_over_what_it_adds_to():
    buffers = {
        "trunk": Buffer(1_000, 8, 0, 2),
        "inner": Buffer(1_000, 8, 1, 2),
        "sum": Buffer(1_000, 8, 2, 3, over="trunk"),
    }
    plan = plan_memory(buffers)
    assert plan.size == 2_000 and plan.offsets["sum"] == plan.offsets["trunk"]
    buffers["late"] = Buffer(10, 8, 3, 4)
    buffers["trunk"] = Buffer(1_000, 8, 0, 3)  # somebody reads it later
    assert plan_memory(buffers).size == 3_000


@given(networks())
def test_the_size_is_known_without_the_plan(buffers):
    assert memory_size(buffers) == plan_memory(buffers).size
