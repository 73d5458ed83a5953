"""The test result: the answer, the best uniform width within the budget and the float network on unseen samples."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from amed_env.agents.result import SearchResult
from amed_env.evaluation.quality import Quality
from amed_env.evaluation.verdict import Estimate
from amed_env.problem.score import Score
from amed_env.report.style import ACCENT, DARK, tidy


@dataclass(frozen=True)
class UnseenValue:
    """A network on unseen samples.

    Attributes:
        title: What it is.
        mark: Of the point.
        value: Its mean.
        error: Standard error of that; None where it is not known.
    """

    title: str
    mark: str
    value: float
    error: float | None


def unseen_score(result: SearchResult) -> Score:
    """What is drawn: what the verdict compares, or else the first metric, or the score."""
    if result.verdict is not None:
        return result.verdict.score
    measured = (metric for metric in result.task.evaluator.metrics if metric.name in result.test["best"].metrics)
    return next(measured, result.task.score)


def unseen_values(result: SearchResult) -> list[UnseenValue]:
    """What to draw, the answer first; empty without a report, an answer or test samples."""
    if "best" not in result.test:
        return []
    score, uniform = unseen_score(result), result.best_uniform()
    tuned = result.tuned_weights is not None
    found = [_value("answer,\ntuned" if tuned else "answer", "*", result.test["best"], score)]
    if uniform is not None:
        bits = uniform.removeprefix("uniform-")
        after_tuning = f"{uniform}-tuned" in result.test
        title = f"uniform\n{bits} bit, tuned" if after_tuning else f"uniform\n{bits} bit"
        found.append(_value(title, "s", result.of_uniform(uniform), score))
    if not score.against_float:
        found.append(_value("float\nnetwork", "D", result.test["float"], score))
    return found


def _value(title: str, mark: str, quality: Quality, score: Score) -> UnseenValue:
    if score.name in quality.per_sample:
        estimate = Estimate.of(quality.per_sample[score.name])
        return UnseenValue(title, mark, score.shown(estimate.value), score.shown(estimate.error))
    if quality.scored_by.name == score.name:
        error = quality.standard_error
        return UnseenValue(title, mark, score.shown(quality.score), None if error is None else score.shown(error))
    return UnseenValue(title, mark, score.shown(quality.metrics[score.name]), None)


def draw_unseen(axes: Axes, result: SearchResult, values: list[UnseenValue]) -> None:
    """Draw the test result.

    Args:
        axes: Where.
        result: The result, with its report.
        values: Of `unseen_values`.
    """
    score = unseen_score(result)
    decimals = 2 if score.unit == "%" else 4
    for position, unseen in enumerate(values):
        is_answer = position == 0
        axes.errorbar(
            position,
            unseen.value,
            yerr=unseen.error,
            marker=unseen.mark,
            markersize=15 if is_answer else 8,
            color=ACCENT if is_answer else DARK,
            markerfacecolor=ACCENT if is_answer else "white",
            markeredgecolor="white" if is_answer else DARK,
            markeredgewidth=1.0 if is_answer else 1.4,
            ecolor=ACCENT if is_answer else DARK,
            elinewidth=1.2,
            capsize=3,
        )
        axes.annotate(
            f"{unseen.value:.{decimals}f}",
            (position, unseen.value + (unseen.error or 0.0) * (1 if score.higher_is_better else -1)),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=ACCENT if is_answer else DARK,
        )
    axes.set_xticks(range(len(values)), [unseen.title for unseen in values], parse_math=False, fontsize=8.5)
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.margins(y=0.25)
    axes.set_ylabel(score.label)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    if not score.higher_is_better:
        axes.invert_yaxis()  # better is higher, as beside it
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.7)
    axes.set_title(f"on {result.test['best'].samples:,} unseen samples", loc="left", fontsize=10)
    tidy(axes)
