"""What may be asked of a benchmark: the command keeps to it, and so does every file of results."""

from enum import StrEnum

MOST_SEEDS = 1_000
MOST_EVALUATIONS = 100_000
"""Distinct evaluations of a run: more than any table of the suites has rows, and few enough to be made again."""


class Cells(StrEnum):
    """Which cells of a suite."""

    HELD_OUT = "held-out"
    DEVELOPMENT = "development"
