"""The tree-structured Parzen estimator of optuna."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.agents.options import import_optional, whole_number
from amed_env.agents.protocol import Agent
from amed_env.agents.searchers.moves import evaluate, fresh_choices, good_starts, near_the_budget, new_near, prior
from amed_env.agents.session import SearchSession
from amed_env.tasks.proxies import get_proxies
from amed_env.tasks.task import Task

IntArray = npt.NDArray[np.int64]


class TPEAgent(Agent):
    """Samples precisions from what good allocations have in common (Bergstra et al. 2011), all layers at once.

    It starts with the proxy's optimum and random allocations near the budget. What exceeds the budget is narrowed, what
    is known already is mutated until it is new, and the estimator learns from what became of its sample.

    Args:
        startup: Allocations at the beginning that do not come from the estimator.
        proxy: Name of the proxy whose optimum is the first.

    Raises:
        UnknownNameError: If there is no such proxy.
        AgentError: If optuna is not installed, or `startup` is no positive whole number.
    """

    name = "tpe"
    libraries = ("optuna",)

    def __init__(self, startup: int = 20, proxy: str = "kl") -> None:
        self.startup = whole_number("startup", startup)
        self.proxy = get_proxies(proxy)[0]
        self._optuna = import_optional("optuna", self.name, "optuna")

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        logging = self._optuna.logging
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # of an experimental sampler it warns each time
        try:
            self._explore(session)
        finally:
            logging.set_verbosity(verbosity)

    def _explore(self, session: SearchSession) -> None:
        optuna, task = self._optuna, session.task
        space = self._space(task)
        study = self._study(session.seed)
        queue = good_starts(session, prior(session, self.proxy))[:1]
        while True:
            session.check()
            choices: IntArray | None
            if queue:
                choices = queue.pop()
            elif not space:
                choices = fresh_choices(session)
            elif session.evaluations < self.startup:
                choices = near_the_budget(session)
                if choices is None or session.knows(task.allocation(choices)):
                    choices = fresh_choices(session)
            else:
                asked = study.ask(space)
                # What is told is the allocation that became of it, below.
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
                choices = new_near(session, self._choices(task, asked.params))
            if choices is None:
                return
            trial = evaluate(session, choices)
            if trial is not None and space:
                value, params = task.gain(trial.quality), self._params(task, choices)
                study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value))

    def _study(self, seed: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            sampler = self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True)
        return self._optuna.create_study(direction="maximize", sampler=sampler)

    def _space(self, task: Task) -> dict[str, Any]:
        """An ordered number a layer, or one for weights and one for activations; nothing for pinned layers."""
        integers = self._optuna.distributions.IntDistribution
        most = len(task.free_bits) - 1
        parts = ("w", "a") if task.separate else ("wa",)
        free = [name for name in task.workload.layer_names if name not in task.pins]
        return {f"{name} {part}": integers(0, most) for name in free for part in parts}

    def _choices(self, task: Task, params: dict[str, int]) -> IntArray:
        choices = task.space.uniform_choices(int(task.space.free_choices[0]))
        positions = {tuple(precision): number for number, precision in enumerate(task.precisions)}
        for layer, name in enumerate(task.workload.layer_names):
            if name not in task.pins:
                if not task.separate:
                    choices[layer] = task.space.free_choices[params[f"{name} wa"]]
                    continue
                weight, activation = (task.free_bits[params[f"{name} {part}"]] for part in ("w", "a"))
                choices[layer] = positions[weight, activation]
        return choices

    def _params(self, task: Task, choices: IntArray) -> dict[str, int]:
        params: dict[str, int] = {}
        for name, choice in zip(task.workload.layer_names, choices, strict=True):
            if name not in task.pins:
                if not task.separate:
                    params[f"{name} wa"] = int(np.flatnonzero(task.space.free_choices == choice)[0])
                    continue
                weight, activation = (task.free_bits.index(bits) for bits in task.precisions[int(choice)])
                params |= {f"{name} w": weight, f"{name} a": activation}
        return params
