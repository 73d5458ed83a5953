"""How torch works while a small learner learns: threads and checks, for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributions import Distribution


def use_one_thread() -> None:
    """Let torch use one thread from now on, in a process that has others of its kind on the other cores."""
    torch.set_num_threads(1)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads inside the block; None changes nothing.

    Small learners are several times slower with many threads than with one, batches of images are faster, so
    the two alternate.
    """
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def unchecked_distributions() -> Iterator[None]:
    """Let torch's distributions take their parameters as they are, inside the block.

    The checks take a third of the time of a small policy. Parameters that are no numbers still end in an error, when
    they are sampled from.
    """
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
