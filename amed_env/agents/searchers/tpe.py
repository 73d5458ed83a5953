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
from amed_env.problem.allocation import Precision
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
        """For each layer that has a choice an ordered number, or one for its weights and one for its activations."""
        integers = self._optuna.distributions.IntDistribution
        return {name: integers(0, len(options) - 1) for name, options in _parameters(task).items()}

    def _choices(self, task: Task, params: dict[str, int]) -> IntArray:
        """What parameters stand for; of a pair that the layer may not choose, the nearest one."""
        options = _parameters(task)
        chosen = task.space.uniform_choices(int(task.space.free_choices[0]))
        for layer, name in enumerate(task.workload.layer_names):
            if f"{name} wa" in options:
                chosen[layer] = options[f"{name} wa"][params[f"{name} wa"]]
            elif f"{name} w" in options:
                widths = [options[f"{name} {part}"][params[f"{name} {part}"]] for part in ("w", "a")]
                chosen[layer] = task.precisions.index(Precision(*widths))
        return task.nearest_choosable(chosen)

    def _params(self, task: Task, choices: IntArray) -> dict[str, int]:
        params: dict[str, int] = {}
        for full_name, options in _parameters(task).items():
            name, _, part = full_name.rpartition(" ")
            choice = int(choices[task.workload.layer_names.index(name)])
            values = {"wa": choice, "w": task.precisions[choice][0], "a": task.precisions[choice][1]}
            params[full_name] = options.index(values[part])
        return params


def _parameters(task: Task) -> dict[str, list[int]]:
    """What each parameter chooses from, narrow first: numbers of precisions, or with separate widths their bits."""
    parameters: dict[str, list[int]] = {}
    for name, choices, choosable in zip(
        task.workload.layer_names, task.space.layer_choices, task.choosable, strict=True
    ):
        if len(choices) == 1:
            continue
        if task.separate:
            parameters[f"{name} w"] = sorted({precision.weight_bits for precision in choices})
            parameters[f"{name} a"] = sorted({precision.activation_bits for precision in choices})
        else:
            parameters[f"{name} wa"] = np.flatnonzero(choosable).tolist()
    return parameters
