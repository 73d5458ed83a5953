"""Choosing the answer of a search: its best allocations on more samples, after a short tuning if that is asked for."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from amed_env.agents.result import SearchResult
from amed_env.agents.session import best_trial
from amed_env.errors import InputError, NonFiniteError
from amed_env.evaluation.finalists import Finalist, Finalists, TrainedWeights
from amed_env.evaluation.quality import Evaluator, Progress, Quality
from amed_env.evaluation.store import Trial
from amed_env.problem.allocation import BitAllocation
from amed_env.tasks.task import Task

logger = logging.getLogger(__name__)

FINALISTS = 8
"""Each takes a pass over all samples: these eight are a few per cent of a search of 300 evaluations."""
CLEARLY = 5.0
"""Standard errors between two scores on the samples of the search that leave no doubt which is better."""


def choose_finalist(
    result: SearchResult, finalists: int = FINALISTS, tune_steps: int = 0, progress: Progress | None = None
) -> Finalists | None:
    """Choose a search's answer among its best allocations, on all samples that there are but those of the test split.

    The best uniform width within the budget is among them, unless it is clearly worse: the report evaluates it whatever
    the search did, and no search should answer with less. The choice is `result.best` afterwards, and in
    `result.finalists` with what it was chosen from; trials, their number and the Pareto front stay. Call it before
    `add_report`.

    Where the evaluator `solves_answers`, the chosen one and the best uniform width get weights that are solved for
    them, if these are better.

    Args:
        result: What a search found.
        finalists: How many of its best allocations are looked at.
        tune_steps: Steps of training for each of them, on the training samples, before they are compared; 0 for none.
            The evaluator is afterwards as it was.
        progress: Called with the finalists done and all of them.

    Returns:
        The choice; None, and nothing but uniform widths is scored, if the search found nothing within the budgets,
        there are neither more samples than its own nor steps of tuning, or there is nothing to choose from. Then
        `result.best` is the best of what it found and of the uniform widths, by the samples of the search.

    Raises:
        InputError: If a number is out of range, or the task has no network that could be tuned.
        DataError: If there are no training samples to tune on.
        NonFiniteError: If a network returns NaN or infinity.
    """
    check_finalists(result.task, finalists, tune_steps)
    evaluator = result.task.evaluator
    if result.best is None:
        return None
    trained = tune_steps > 0 or evaluator.learns or evaluator.solves_answers
    candidates = _candidates(result, finalists, trained)
    if not evaluator.learns:  # else the scores of two trials are of different weights
        result.best = best_trial([trial for _, trial in candidates])
    if len(candidates) == 1 and not trained:  # before more samples are read, which takes as long as scoring thousands
        logger.debug("%s has one finalist, so nothing is scored again", result.task.network)
        return None
    judge = evaluator.with_more_samples(tuned=tune_steps > 0)
    if judge is None and not trained:
        logger.debug("%s has no more samples than those of the search, so nothing is scored again", result.task.network)
        return None
    scored = []
    for number, (name, trial) in enumerate(candidates):
        if progress is not None:
            progress(number, len(candidates))
        scored.append(_scored(name, trial, judge or evaluator, evaluator, tune_steps, result.seed))
    found = Finalists.of(scored, result.pareto_metric, tune_steps)
    if evaluator.solves_answers:
        # The uniform width too, so that what the verdict compares was made in the same way.
        uniform = result.best_uniform()
        answers = {found.chosen.trial.allocation, *([] if uniform is None else [result.baselines[uniform].allocation])}
        scored = [
            _solved(one, judge or evaluator, evaluator) if one.trial.allocation in answers else one for one in scored
        ]
        found = Finalists.of(scored, result.pareto_metric, tune_steps)
    result.finalists, result.best = found, found.chosen.trial
    return result.finalists


def check_finalists(task: Task, finalists: int, tune_steps: int) -> None:
    """Check, before a search, that its finalists can be chosen.

    Raises:
        InputError: If a number is out of range, or the task has no network that could be tuned.
        DataError: If there are no training samples to tune on.
    """
    if isinstance(finalists, bool) or not isinstance(finalists, int) or finalists < 1:
        raise InputError(f"finalists is {finalists!r}; give a whole number of at least 1.")
    if isinstance(tune_steps, bool) or not isinstance(tune_steps, int) or tune_steps < 0:
        raise InputError(f"tune_steps is {tune_steps!r}; give a whole number, 0 for no tuning.")
    if tune_steps:
        task.evaluator.network_evaluator().training_data  # noqa: B018 (says what is missing)


def _candidates(result: SearchResult, count: int, trained: bool) -> list[tuple[str, Trial]]:
    """The best trials within the budgets, by rank, and the best uniform width if it may be better.

    What is clearly worse before it is `trained` may be better afterwards.
    """
    feasible = [trial for trial in result.trials if result.task.feasible(trial.costs)]
    # An allocation that a network in training came to more than once: its last trial is the nearest to what it is now.
    latest = {trial.allocation: trial for trial in feasible}
    best = sorted(latest.values(), key=lambda trial: trial.quality.order)[:count]
    candidates = [(str(rank), trial) for rank, trial in enumerate(best, start=1)]
    result.add_baselines()
    uniform = result.best_uniform()
    if uniform is not None:
        trial = result.baselines[uniform]
        known = any(trial.allocation == other.allocation for other in best)
        if not known and (trained or not _is_clearly_worse(trial.quality, best[0].quality)):
            candidates.append((uniform, trial))
    return candidates


def _is_clearly_worse(quality: Quality, best: Quality) -> bool:
    """Whether samples of the search leave no doubt, so that more of them would be scored for nothing."""
    if quality.standard_error is None or best.standard_error is None or quality.order <= best.order:
        return False
    # Both are of the same samples, so the error of their difference is smaller than this.
    return abs(quality.score - best.score) > CLEARLY * math.hypot(quality.standard_error, best.standard_error)


def _scored(name: str, trial: Trial, judge: Evaluator, evaluator: Evaluator, tune_steps: int, seed: int) -> Finalist:
    """A finalist with its score on the judge's samples, before and after tuning."""
    weights = evaluator.weights_at(trial.allocation)
    quality = _quality(judge, evaluator, trial.allocation, weights)
    untuned = Finalist(name, trial, quality, quality, weights)
    if not tune_steps:
        return untuned
    from amed_env.training.tuning import tune  # brings torch, which tables do without

    try:
        with evaluator.network_evaluator().restored():
            tuned_weights = tune(evaluator, trial.allocation, tune_steps, seed)
            tuned = judge.evaluate(trial.allocation)
    except NonFiniteError as error:
        logger.warning("finalist %s stays untuned: %s", name, error)
        return untuned
    # A few steps may not make up for leaving the rounding that was learned; nobody would deploy the worse weights.
    if untuned.quality.order <= tuned.order:
        return untuned
    return Finalist(name, trial, untuned.quality, tuned, tuned_weights)


def _solved(finalist: Finalist, judge: Evaluator, evaluator: Evaluator) -> Finalist:
    """A finalist with weights that are solved for it, if they are better than those that it has."""
    weights = evaluator.solved_weights(finalist.trial.allocation)
    quality = _quality(judge, evaluator, finalist.trial.allocation, weights)
    if finalist.quality.order <= quality.order:
        return finalist
    return replace(finalist, quality=quality, weights=weights)


def _quality(
    judge: Evaluator, evaluator: Evaluator, allocation: BitAllocation, weights: TrainedWeights | None
) -> Quality:
    """Quality on the judge's samples, with weights that were trained during the search if there are any."""
    if weights is None:
        return judge.evaluate(allocation)
    of_network = evaluator.network_evaluator()
    with of_network.restored():
        of_network.adopt(*weights)
        return judge.evaluate(allocation)
