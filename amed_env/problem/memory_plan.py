"""The memory that results of layers take while a network runs: which share a place, and which are stored in few bits.

A result lives from the step that makes it to the last one that reads it. Results that do not live at the same time
share memory; a step that goes over the places of a result in order may write over it; codes of less than 8 bits take
a byte each, but are packed where the network would otherwise need more memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from amed_env.problem.allocation import FLOAT_BITS, BitAllocation

ALIGNMENT = 4
"""Bytes: floats and 32-bit integers are read from aligned addresses."""
BYTE = 8


@dataclass(frozen=True)
class Buffer:
    """A result.

    Attributes:
        elements: Values.
        bits: Of each: 32 for floats, 2 to 8 for codes.
        first, last: The steps between which it must be kept.
        over: A result that step `first` may write over, if it is the last one that reads it; None if there is none.
        narrower: Whether it may do so with values of less bits than it reads, or only with values of as many.
    """

    elements: int
    bits: int
    first: int
    last: int
    over: str | None = None
    narrower: bool = False

    def stored_bits(self, packed: bool) -> int:
        """Bits that a value takes in memory."""
        return self.bits if packed or self.bits > BYTE else BYTE

    def size(self, packed: bool) -> int:
        """Bytes."""
        return -(-self.elements * self.stored_bits(packed) // BYTE)


@dataclass(frozen=True)
class Result:
    """A result, whatever the allocation.

    Attributes:
        name: Its name.
        elements: Values.
        layer: The layer that reads it, at the width of its activations; empty if it is kept in floats.
        stored: Whether it is kept at 8 bits instead, for several readers; `layer` is the one that makes it.
        first, last: The steps between which it must be kept.
        over, narrower: See `Buffer`.
    """

    name: str
    elements: int
    layer: str
    stored: bool
    first: int
    last: int
    over: str | None = None
    narrower: bool = False

    def bits(self, allocation: BitAllocation) -> int:
        """Of a value."""
        if not self.layer:
            return FLOAT_BITS
        return BYTE if self.stored else allocation[self.layer].activation_bits


def buffers_under(results: Iterable[Result], allocation: BitAllocation) -> dict[str, Buffer]:
    """Results under an allocation.

    What several readers share is kept in floats, not at 8 bits, if any layer has more than 8 bits, as the evaluator
    has it.
    """
    wide = any(max(precision) > BYTE for precision in allocation.values())
    buffers = {}
    for result in results:
        bits = FLOAT_BITS if result.stored and wide else result.bits(allocation)
        buffers[result.name] = Buffer(result.elements, bits, result.first, result.last, result.over, result.narrower)
    return buffers


@dataclass(frozen=True)
class NetworkMemory:
    """What a network keeps in memory while it runs one sample.

    Attributes:
        results: Results of its steps; input and output are the caller's.
        scratch: Bytes that the kernels need for themselves: the weights of one output, unpacked, and 256 for a table of
            codes if some layer reads what is kept at another width.
    """

    results: tuple[Result, ...]
    scratch: int

    def plan(self, allocation: BitAllocation) -> MemoryPlan:
        """Where results lie under an allocation."""
        return plan_memory(buffers_under(self.results, allocation))

    def bytes(self, allocation: BitAllocation) -> int:
        """All memory under an allocation: what exported C declares."""
        return memory_size(buffers_under(self.results, allocation)) + self.scratch


@dataclass(frozen=True)
class MemoryPlan:
    """Places of results in one arena.

    Attributes:
        offsets: Name to the first byte.
        size: Bytes of the arena.
        packed: Names of codes that are stored at their width and not in a byte each.
    """

    offsets: Mapping[str, int]
    size: int
    packed: frozenset[str] = frozenset()


def plan_memory(buffers: Mapping[str, Buffer]) -> MemoryPlan:
    """Places without overlap of what lives at the same time, in as little memory as several usual orders find.

    Unpacking costs time, so codes are packed only where the arena would be larger without.
    """
    smallest = _smallest(buffers)
    packed = smallest.packed
    for group in _halves(sorted(packed)):
        if packed & set(group):
            found = _plan(buffers, packed - set(group))
            if found.size == smallest.size:
                smallest, packed = found, found.packed
    return smallest


def memory_size(buffers: Mapping[str, Buffer]) -> int:
    """Bytes of the arena that `plan_memory` finds, sooner."""
    return _smallest(buffers).size


def _smallest(buffers: Mapping[str, Buffer]) -> MemoryPlan:
    """Places with no result packed, with all narrow ones, or with those that may write over a result either way."""
    narrow = frozenset(name for name, buffer in buffers.items() if buffer.bits < BYTE)
    plain = _plan(buffers, frozenset())
    if not narrow:
        return plain
    tied = {
        name
        for name in narrow
        if _may_overwrite(buffers, name, buffers[name].over, frozenset())
        and not _may_overwrite(buffers, name, buffers[name].over, narrow)
    }
    plans = [plain, _plan(buffers, narrow)]
    if tied:
        plans.append(_plan(buffers, narrow - tied))
    return min(plans, key=lambda plan: plan.size)


def _halves(names: Sequence[str]) -> list[Sequence[str]]:
    """Groups to try, from all names to each one: two halves of every group."""
    groups = [names]
    for group in groups:
        if len(group) > 1:
            groups += [group[: len(group) // 2], group[len(group) // 2 :]]
    return groups


def _plan(buffers: Mapping[str, Buffer], packed: frozenset[str]) -> MemoryPlan:
    """The best of several orders: each buffer goes to the lowest place that is free, as in embedded runtimes.

    Which buffer goes first decides how much is wasted: the largest is usually best, but not where sizes are nearly
    equal.
    """
    sizes = {name: buffer.size(name in packed) for name, buffer in buffers.items()}
    shared = {
        frozenset((name, buffer.over))
        for name, buffer in buffers.items()
        if buffer.over is not None and _may_overwrite(buffers, name, buffer.over, packed)
    }
    least = _least(buffers, sizes, shared)
    best: MemoryPlan | None = None
    # Writing over a result ties two places together, which may waste more elsewhere: both are tried.
    for pairs in (shared, set[frozenset[str]]()) if shared else (shared,):
        for order in _orders(buffers, sizes):
            found = _placed(buffers, sizes, order, pairs)
            if best is None or found.size < best.size:
                best = found
            if best.size <= least:
                return MemoryPlan(best.offsets, best.size, packed)
    assert best is not None
    return MemoryPlan(best.offsets, best.size, packed)


def _orders(buffers: Mapping[str, Buffer], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    yield sorted(buffers, key=lambda name: (-sizes[name], buffers[name].first, name))
    yield sorted(buffers, key=lambda name: (buffers[name].first, -sizes[name], name))
    yield sorted(buffers, key=lambda name: (-buffers[name].last, -sizes[name], name))
    yield sorted(buffers, key=lambda name: (buffers[name].first - buffers[name].last, -sizes[name], name))


def _least(buffers: Mapping[str, Buffer], sizes: Mapping[str, int], pairs: Collection[frozenset[str]]) -> int:
    """What all places together take at the least: the most that lives at one time."""
    moments = [0] * (1 + max((buffer.last for buffer in buffers.values()), default=0))
    for name, buffer in buffers.items():
        for step in range(buffer.first, buffer.last + 1):
            moments[step] += _aligned(sizes[name])
    for pair in pairs:
        one, other = pair
        moments[max(buffers[one].first, buffers[other].first)] -= min(_aligned(sizes[one]), _aligned(sizes[other]))
    return max(moments)


def _may_overwrite(buffers: Mapping[str, Buffer], name: str, over: str | None, packed: Collection[str]) -> bool:
    if over is None or over not in buffers:
        return False
    buffer, read = buffers[name], buffers[over]
    mine, theirs = buffer.stored_bits(name in packed), read.stored_bits(over in packed)
    return read.last == buffer.first and (mine == theirs or (buffer.narrower and mine < theirs))


def _placed(
    buffers: Mapping[str, Buffer], sizes: Mapping[str, int], order: Sequence[str], pairs: set[frozenset[str]]
) -> MemoryPlan:
    offsets: dict[str, int] = {}
    for name in order:
        mine = buffers[name]
        alive = [other for other in offsets if buffers[other].first <= mine.last and mine.first <= buffers[other].last]
        shared = [other for other in alive if frozenset((name, other)) in pairs]
        offsets[name] = _place(sizes, offsets, name, alive, shared)
    size = max((offsets[name] + _aligned(sizes[name]) for name in offsets), default=0)
    return MemoryPlan(offsets, size)


def _place(
    sizes: Mapping[str, int], offsets: Mapping[str, int], name: str, alive: Sequence[str], shared: Sequence[str]
) -> int:
    """That of a result which is written over, or else the lowest one that is free."""
    taken = {other: (offsets[other], offsets[other] + _aligned(sizes[other])) for other in alive}
    size = _aligned(sizes[name])
    for other in shared:
        place = offsets[other]
        others = [taken[third] for third in alive if third != other]
        if all(place + size <= start or end <= place for start, end in others):
            return place
    place = 0
    for start, end in sorted(taken.values()):
        if place + size <= start:
            break
        place = max(place, end)
    return place


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
