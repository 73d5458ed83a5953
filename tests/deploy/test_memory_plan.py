"""Memory plans: nothing that lives at the same time overlaps, and little is wasted."""

from hypothesis import given
from hypothesis import strategies as st

from amed_env.deploy.memory_plan import ALIGNMENT, Lifetime, plan_memory

LIFETIMES = st.lists(
    st.builds(
        lambda size, first, length: Lifetime(size, first, first + length),
        st.integers(1, 1_000),
        st.integers(0, 12),
        st.integers(0, 6),
    ),
    max_size=12,
)


@given(LIFETIMES)
def test_nothing_that_lives_at_the_same_time_overlaps(lifetimes):
    buffers = {f"b{number}": lifetime for number, lifetime in enumerate(lifetimes)}
    plan = plan_memory(buffers)
    places = {name: range(plan.offsets[name], plan.offsets[name] + buffers[name].size) for name in buffers}
    for one in buffers:
        assert plan.offsets[one] % ALIGNMENT == 0 and places[one].stop <= plan.size
        for other in buffers:
            together = buffers[one].first <= buffers[other].last and buffers[other].first <= buffers[one].last
            if one != other and together:
                assert places[one].stop <= places[other].start or places[other].stop <= places[one].start
    for step in range(20):
        alive = [b for b in buffers.values() if b.first <= step <= b.last]
        assert plan.size >= sum(buffer.size for buffer in alive)


def test_a_chain_needs_its_two_largest_neighbours():
    sizes = [100, 400, 300, 200, 40]
    plan = plan_memory({str(i): Lifetime(size, i, i + 1) for i, size in enumerate(sizes)})
    assert plan.size == 700
    assert plan_memory({}).size == 0
