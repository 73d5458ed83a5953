"""What an agent works with: evaluates allocations, counts them, keeps every trial, and says when it is over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Set
from dataclasses import replace
from time import perf_counter

import numpy as np

from amed_env.errors import AmedError, BackendError, InputError, SearchEnded, StoreError
from amed_env.evaluation.store import Trial, TrialStore
from amed_env.problem.allocation import BitAllocation
from amed_env.tasks.task import Task

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_FAULTS = 20
"""Evaluations that may fail one after the other before a search is given up."""
MAX_CONSECUTIVE_REPEATS = 100_000
"""Known allocations that an agent may ask for one after the other before it is taken to have nothing new."""


class SearchSession:
    """One search of one agent on one task.

    What counts is the number of *different allocations* whose quality the agent asked for, whether the store knew the
    answer or not. Where the evaluator `learns`, the same allocation scores differently each time: every evaluation
    counts, and the evaluator's own journal takes the place of the store. So a search that is started again with its
    seed and its store takes the same way, gets what was finished at once, and ends where an uninterrupted one would.
    Costs are free: ask `task.cost` as often as you like.

    Attributes:
        task: The task with its budgets.
        limit: Evaluations that the agent has.
        seed: Seed of the search.
        rng: NumPy generator of that seed, for the agent's own use.
        trials: Every trial of this search, in the order of evaluation.
        faults: Evaluations that failed, with their message.
        note: Line that an agent may set to say what it is doing (shown beside the progress).

    Args:
        task: The task.
        evaluations: How many different allocations may be evaluated, at least 1.
        seed: Seed of the search.
        store: Where trials are kept; in memory by default.
        on_change: Called with the session whenever a trial, a fault or the note is new.
        max_faults: Failures in a row, of evaluations or of calls of the device alone, after which it is over.

    Raises:
        InputError: If a number is out of range.
    """

    def __init__(
        self,
        task: Task,
        evaluations: int,
        seed: int = 0,
        store: TrialStore | None = None,
        on_change: Callable[[SearchSession], None] | None = None,
        max_faults: int = MAX_CONSECUTIVE_FAULTS,
    ) -> None:
        if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1:
            raise InputError(f"evaluations is {evaluations!r}; give a whole number of at least 1.")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise InputError(f"seed is {seed!r}; give a whole number from 0 to 2^32 - 1.")
        if isinstance(max_faults, bool) or not isinstance(max_faults, int) or max_faults < 1:
            raise InputError(f"max_faults is {max_faults!r}; give a whole number of at least 1.")
        self.task, self.limit, self.seed, self.max_faults = task, evaluations, seed, max_faults
        task.device_faults.succeeded()  # what went wrong before this search does not count here
        self.rng = np.random.default_rng(seed)
        self.trials: list[Trial] = []
        self.faults: list[str] = []
        self.note = ""
        self.started = perf_counter()
        self._seen: dict[BitAllocation, Trial | None] = {}
        self._repeated = 0  # evaluations of known allocations, by evaluators that learn
        self._best: Trial | None = None
        self._compared = 0  # trials that `_best` is the best of
        self._consecutive_faults = 0
        self._consecutive_repeats = 0
        self._store = TrialStore() if store is None else store
        if store is not None:  # to tell what a network is takes its preparation, which a first answer does without
            store.bind({"network, data or quantization": task.evaluator.fingerprint, "score": task.score.name})
        self._on_change = on_change

    @property
    def evaluations(self) -> int:
        """Different allocations asked for so far, or all evaluations of an evaluator that learns."""
        return len(self._seen) + self._repeated

    @property
    def asked(self) -> Set[BitAllocation]:
        """The different allocations asked for so far, those that failed among them."""
        return self._seen.keys()

    @property
    def seconds(self) -> float:
        """Time since the start of the search."""
        return perf_counter() - self.started

    @property
    def faulty(self) -> bool:
        """Whether so many evaluations failed one after the other that going on makes no sense."""
        return max(self._consecutive_faults, self.task.device_faults.consecutive) >= self.max_faults

    @property
    def ended(self) -> bool:
        """Whether no further allocation may be evaluated."""
        return self.evaluations >= self.limit or self.faulty

    def say(self, note: str) -> None:
        """Set the note that is shown beside the progress."""
        self.note = note
        self._changed()

    def check(self) -> None:
        """Raise `SearchEnded` if the search is over; for loops that ask the device but do not evaluate."""
        if self.faulty:
            raise SearchEnded(f"{self.max_faults} evaluations or calls of the device failed one after the other.")
        if self.evaluations >= self.limit:
            raise SearchEnded(f"all {self.limit} evaluations are used up.")

    def check_device(self) -> None:
        """Raise `SearchEnded` if the device failed too often in a row; for what catches its single failures."""
        if self.faulty:
            self.check()

    def feasible(self, allocation: BitAllocation) -> bool:
        """Whether an allocation is within the budgets; where the device fails to say, it is taken not to be.

        Raises:
            SearchEnded: If the device failed too often in a row.
        """
        try:
            return self.task.feasible(self.task.cost(allocation).metrics)
        except BackendError:
            self.check_device()
            return False

    def knows(self, allocation: BitAllocation) -> bool:
        """Whether this search has evaluated an allocation, so that asking again is free."""
        return allocation in self._seen

    def failed(self, allocation: BitAllocation) -> bool:
        """Whether this search has evaluated an allocation in vain."""
        return allocation in self._seen and self._seen[allocation] is None

    def evaluate(self, allocation: BitAllocation) -> Trial:
        """Quality and cost of an allocation; one that was evaluated before is answered at once and not counted.

        Raises:
            SearchEnded: If the evaluations are used up, or if nothing new was asked for in a very long time;
                `Agent.search` catches it, so an agent may loop for ever.
            AmedError: If the evaluation failed; it is counted and may be caught to go on.
        """
        if not isinstance(allocation, BitAllocation):
            raise InputError(f"{allocation!r} is no allocation; make one with session.task.allocation(choices).")
        allocation = allocation.plain().require_layers(self.task.workload.layer_names, f"network {self.task.network!r}")
        self.task.space.require_pins(allocation)
        self.check()
        known = self._seen.get(allocation)
        if self.task.evaluator.learns:
            self._repeated += allocation in self._seen
        elif known is not None:
            self._consecutive_repeats += 1
            if self._consecutive_repeats > MAX_CONSECUTIVE_REPEATS:
                raise SearchEnded(f"the last {MAX_CONSECUTIVE_REPEATS} allocations asked for were all known already.")
            return known
        self._consecutive_repeats = 0
        try:
            trial = self._stored_or_measured(allocation)
        except StoreError:
            raise
        except Exception as error:
            self._seen[allocation] = None
            self._consecutive_faults += 1
            self.faults.append(f"{allocation.key()}: {type(error).__name__}: {error}")
            logger.warning("evaluation failed: %s", self.faults[-1])
            self._changed()
            if isinstance(error, AmedError):
                raise
            raise AmedError(
                f"the evaluation of {allocation.key()!r} failed: {type(error).__name__}: {error}."
            ) from error
        self._consecutive_faults = 0
        self._seen[allocation] = trial
        self.trials.append(trial)
        self._changed()
        return trial

    def _stored_or_measured(self, allocation: BitAllocation) -> Trial:
        if self.task.evaluator.learns:
            return self.task.measure(allocation)
        stored = self._store.get(allocation)
        if stored is not None:
            # Quality is the network's alone; costs are this task's, so they are looked up anew. Files know of a score
            # only its name and orientation.
            quality = replace(stored.quality, scored_by=self.task.score)
            return Trial(allocation, quality, dict(self.task.cost(allocation).metrics), stored.seconds)
        trial = self.task.measure(allocation)
        self._store.add(trial)
        return trial

    def best(self) -> Trial | None:
        """The feasible trial of the best score; ties go to the lower loss, then to the earlier one."""
        fitting = [trial for trial in self.trials[self._compared :] if self.task.feasible(trial.costs)]
        self._best = best_trial(fitting if self._best is None else [self._best, *fitting])
        self._compared = len(self.trials)
        return self._best

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change(self)


def best_trial(trials: list[Trial]) -> Trial | None:
    """The trial of the best score; ties go to the lower loss, then to the earlier one."""
    return min(trials, key=lambda trial: trial.quality.order, default=None)
