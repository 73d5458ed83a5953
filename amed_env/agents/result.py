"""What a search found: a document that another program can check by evaluating it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import amed_env._version as version
from amed_env.evaluation.finalists import Finalists, TrainedWeights
from amed_env.evaluation.quality import Quality
from amed_env.evaluation.store import Trial
from amed_env.evaluation.verdict import Verdict, compared_score, judge
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.objective import BUDGET_METRICS
from amed_env.problem.pins import pins_json
from amed_env.tasks.task import Task

FORMAT = "amed-result/1"


@dataclass(frozen=True)
class FirstAnswer:
    """An allocation within the budgets that nothing was evaluated for.

    Attributes:
        stage: What it follows from: `gradients`, or `divergences` of single layers.
        allocation: The allocation.
        costs: Its cost by metric.
        seconds: How long it took.
    """

    stage: str
    allocation: BitAllocation
    costs: Mapping[str, float]
    seconds: float

    def to_json(self, network: str) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "stage": self.stage,
            "allocation": self.allocation.to_json(network),
            "costs": dict(self.costs),
        }


@dataclass
class SearchResult:
    """The outcome of a search.

    Attributes:
        task: The task that was solved.
        agent: Name of the agent.
        seed: Seed of the search.
        best: The feasible trial of the best score on the search split, or None if none was found; after
            `choose_finalist` the one that was chosen.
        pareto: Trials of which none has both a better score and less of `pareto_metric`, cheapest first.
        pareto_metric: The metric of the first budget, `latency_ms` without one.
        trials: Every trial of the search, in order.
        evaluations: Different allocations whose quality was asked for.
        limit: Evaluations that were allowed.
        seconds: Duration of the search.
        interrupted: Whether it was stopped before its end.
        faults: Evaluations that failed, with their message.
        gave_up: Whether it stopped because too much failed in a row.
        device_faults: Calls of the device that failed for good, those within evaluations among them.
        device_retries: Calls of the device that failed and were made again.
        baselines: Uniform allocations (but for pinned layers) by width, with search quality and costs; see
            `add_report`.
        test: Quality on the test split by name: `best` (tuned, if it was), `float`, and `uniform-4`, the best uniform
            width within the budget, or `uniform-4-tuned`, if the finalists were tuned; see `add_report`.
        verdict: What is known of the best allocation from the test split, if it has values of single samples; see
            `add_report`.
        finalists: What `best` was chosen from on more samples, or None if nothing was scored again.
        first_answers: What the search began with, before anything was evaluated.
    """

    task: Task
    agent: str
    seed: int
    best: Trial | None
    pareto: list[Trial]
    pareto_metric: str
    trials: list[Trial]
    evaluations: int
    limit: int
    seconds: float
    interrupted: bool = False
    faults: list[str] = field(default_factory=list)
    baselines: dict[str, Trial] = field(default_factory=dict)
    test: dict[str, Quality] = field(default_factory=dict)
    gave_up: bool = False
    device_faults: int = 0
    device_retries: int = 0
    verdict: Verdict | None = None
    finalists: Finalists | None = None
    first_answers: list[FirstAnswer] = field(default_factory=list)

    @property
    def tuned_weights(self) -> TrainedWeights | None:
        """What tuning made of the best allocation; None if it is taken as post-training quantization leaves it."""
        return None if self.best is None else self._weights_of(self.best)

    def _weights_of(self, trial: Trial) -> TrainedWeights | None:
        finalists = () if self.finalists is None else self.finalists.finalists
        same = (finalist.weights for finalist in finalists if finalist.trial.allocation == trial.allocation)
        return next(same, None)

    def add_baselines(self) -> None:
        """Evaluate the uniform allocations on the search split, but for those that the search evaluated."""
        # A network in training changes between trials, so that theirs are of weights that are gone.
        known = {} if self.task.evaluator.learns else {trial.allocation: trial for trial in self.trials}
        for bits, allocation in self.task.space.uniform_widths().items():
            if f"uniform-{bits}" not in self.baselines:
                trial = known.get(allocation) or self.task.measure(allocation, learn=False)
                self.baselines[f"uniform-{bits}"] = trial

    def add_report(self) -> None:
        """Evaluate what the final report compares with, and read the test split, if there is one.

        It is read for the best allocation, the best uniform width within the budget and the float network: for what
        the verdict compares, chosen on the search split. If the finalists were tuned, so is that uniform width.
        """
        self.add_baselines()
        if "test" not in self.task.evaluator.splits:
            return
        self.test["float"] = self.task.quality(self.task.workload.uniform(32), "test")
        uniform = self.best_uniform()
        if uniform is not None:
            tuned = self._weights_of(self.baselines[uniform]) is not None
            self.test[f"{uniform}-tuned" if tuned else uniform] = self._test_quality(self.baselines[uniform])
        if self.best is not None:
            self.test["best"] = self._test_quality(self.best)
            self.verdict = self._judge()

    def _test_quality(self, trial: Trial) -> Quality:
        """Quality on the test split, with the weights that tuning made if there are any."""
        weights = self._weights_of(trial)
        if weights is None:
            return self.task.quality(trial.allocation, "test")
        evaluator = self.task.evaluator.network_evaluator()
        with evaluator.restored():
            evaluator.adopt(*weights)
            return evaluator.evaluate(trial.allocation, "test")

    def _judge(self) -> Verdict | None:
        """The verdict on the best allocation, from samples that nothing was chosen by."""
        uniform = self.best_uniform()
        values = {name: self.test[name].per_sample for name in ("best", "float")}
        if uniform is not None:
            values[uniform] = self.of_uniform(uniform).per_sample
        score = compared_score(self.task.score, self.task.evaluator.metrics, values)
        if score is None:
            return None
        return judge(
            score,
            values["best"][score.name],
            None if uniform is None else values[uniform][score.name],
            None if uniform is None else int(uniform.removeprefix("uniform-")),
            values["float"][score.name],
        )

    def of_uniform(self, name: str) -> Quality:
        """Quality of the best uniform width within the budget on the test split, after tuning if the answer was tuned.

        Args:
            name: What `best_uniform` returns.
        """
        return self.test[f"{name}-tuned"] if f"{name}-tuned" in self.test else self.test[name]

    def best_uniform(self) -> str | None:
        """Name of the feasible uniform baseline of the best score on the search split, or None."""
        feasible = [name for name, trial in self.baselines.items() if self.task.feasible(trial.costs)]
        quality = {name: self.baselines[name].quality for name in feasible}
        return min(feasible, key=lambda name: quality[name].order, default=None)

    def relative_costs(self, costs: Mapping[str, float]) -> dict[str, float]:
        """Costs as factors of the reference cost, by budget name: of the usual budgets and of those of the task."""
        reference = self.task.reference_cost.metrics
        names = {**BUDGET_METRICS, **{budget.name: budget.metric for budget in self.task.budgets}}
        return {
            name: costs[metric] / reference[metric]
            for name, metric in names.items()
            if metric in costs and reference.get(metric)
        }

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON document in format `amed-result/1`."""
        task = self.task
        return {
            "format": FORMAT,
            "version": version.__version__,
            "network": task.network,
            "device": task.device,
            "bits": list(task.free_bits),
            **({"choices": task.space.differing_choices} if task.space.differing_choices else {}),
            "pins": pins_json(task.pins),
            "separate": task.separate,
            **({} if task.activation_bits is None else {"activation_bits": task.activation_bits}),
            "budgets": {b.name: {"value": b.value, "relative": b.relative} for b in task.budgets},
            "limits": dict(task.limits),
            "agent": self.agent,
            "seed": self.seed,
            "evaluations": self.evaluations,
            "evaluations_allowed": self.limit,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "faults": list(self.faults),
            "gave_up": self.gave_up,
            "device_faults": self.device_faults,
            "device_retries": self.device_retries,
            "score": task.score.to_json(),
            "fingerprint": task.evaluator.fingerprint,
            "kept_float": list(task.evaluator.kept_float),
            "float": {"search": task.float_quality.to_json(), "test": self._test_json("float")},
            "best": None if self.best is None else self._trial_json(self.best, "best"),
            "verdict": None if self.verdict is None else self.verdict.to_json(),
            "finalists": None if self.finalists is None else self.finalists.to_json(task.network),
            "first_answers": [answer.to_json(task.network) for answer in self.first_answers],
            "pareto_metric": self.pareto_metric,
            "pareto": [self._trial_json(trial) for trial in self.pareto],
            "baselines": {name: self._trial_json(trial, name) for name, trial in self.baselines.items()},
        }

    def _test_json(self, name: str) -> dict[str, Any] | None:
        return self.test[name].to_json() if name in self.test else None

    def _trial_json(self, trial: Trial, test_name: str | None = None) -> dict[str, Any]:
        document: dict[str, Any] = {
            "allocation": trial.allocation.to_json(self.task.network),
            "search": trial.quality.to_json(),
            "costs": dict(trial.costs),
            "relative_costs": self.relative_costs(trial.costs),
            "feasible": self.task.feasible(trial.costs),
        }
        if test_name is not None:
            document["test"] = self._test_json(test_name)
            if f"{test_name}-tuned" in self.test:
                document["tuned_test"] = self._test_json(f"{test_name}-tuned")
        return document


def pareto_front(trials: list[Trial], metric: str) -> list[Trial]:
    """Trials of which no other has at least the score at less cost, or a better score at the same; cheapest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.costs[metric], trial.quality.order)):
        if not front or trial.quality.order[0] < front[-1].quality.order[0]:
            front.append(trial)
    return front


def allocation_of(document: Mapping[str, Any]) -> BitAllocation:
    """The best allocation of a result document."""
    return BitAllocation.from_json(document["best"]["allocation"], "result")
