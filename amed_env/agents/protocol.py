"""What an agent is: a class that explores a task through a session."""

from __future__ import annotations

import abc
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from amed_env.agents.result import SearchResult, pareto_front
from amed_env.agents.session import MAX_CONSECUTIVE_FAULTS, SearchSession
from amed_env.errors import BackendError, SearchEnded
from amed_env.evaluation.store import TrialStore
from amed_env.problem.objective import BUDGET_METRICS
from amed_env.tasks.task import Task, search_split_only


class Agent(abc.ABC):
    """Solves a task within a number of evaluations. Subclass it and write `explore`.

    Attributes:
        name: The agent's name, as in `amed agents`; of a class without one, the name of the class.
        family: `learner` or `search`, for the listing.
        description: One line for the listing.
        needs: What it needs beyond any task and the bare package, for the listing; empty for nothing.
        saw: What the agent was tuned on, a line each: it stands beside its results in the benchmark.
        libraries: Distributions that it uses beyond those of any search; runs record their versions.
        recipe: The recipe that it was made from, as plain data, or None.
    """

    name: str = "unnamed"
    family: str = "search"
    description: str = ""
    needs: str = ""
    saw: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    recipe: dict[str, Any] | None = None

    _has_name: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "name" in vars(cls):
            cls._has_name = True
        elif not cls._has_name:
            cls.name = cls.__name__

    @abc.abstractmethod
    def explore(self, session: SearchSession) -> None:
        """Evaluate allocations through `session.evaluate` until nothing is left to try.

        Asking for more than the session has ends the exploration by itself, so an endless loop is fine. Take random
        numbers from `session.rng` only.

        Args:
            session: Gives the task, the random generator, and the evaluations.
        """

    def search(
        self,
        task: Task,
        evaluations: int,
        seed: int = 0,
        *,
        store: TrialStore | None = None,
        folder: Path | None = None,
        on_change: Callable[[SearchSession], None] | None = None,
        max_faults: int = MAX_CONSECUTIVE_FAULTS,
    ) -> SearchResult:
        """Search for the best allocation of a task.

        Ctrl-C ends the search; the result then has what was found and `interrupted`.

        Args:
            task: The task with its budgets.
            evaluations: How many different allocations may be evaluated.
            seed: The same seed gives the same search.
            store: Where trials are kept; with the store of an earlier search of the same seed, that one is continued.
            folder: Where the agent may write logs of its own.
            on_change: Called with the session whenever a trial, a fault or the note is new.
            max_faults: Failures in a row after which the search stops; what was found is kept.

        Returns:
            The best trial, the Pareto front and all trials; not yet the comparison (`SearchResult.add_report`).
        """
        self.folder = folder
        session = SearchSession(task, evaluations, seed, store, on_change, max_faults)
        interrupted, gave_up = False, False
        retried, failed = task.device_faults.retried, task.device_faults.count
        try:
            with search_split_only():
                self.explore(session)
        except SearchEnded:
            pass
        except BackendError as error:  # the agent asked the device itself and had no answer to a failure
            session.faults.append(f"{type(error).__name__}: {error}")
            gave_up = True
        except KeyboardInterrupt:
            interrupted = True
        metric = task.budgets[0].metric if task.budgets else BUDGET_METRICS["latency"]
        if session.trials and metric not in session.trials[0].costs:
            metric = BUDGET_METRICS["memory"]
        return SearchResult(
            task,
            self.name,
            seed,
            session.best(),
            pareto_front(session.trials, metric),
            metric,
            session.trials,
            session.evaluations,
            evaluations,
            session.seconds,
            interrupted,
            session.faults,
            gave_up=gave_up or session.faulty,
            device_faults=task.device_faults.count - failed,
            device_retries=task.device_faults.retried - retried,
        )

    folder: Path | None = None
