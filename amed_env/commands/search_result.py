"""What `amed search` shows at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from amed_env.commands.output import Output
from amed_env.commands.tables import allocation_table, comparison_table, finalists_table
from amed_env.errors import BackendError

if TYPE_CHECKING:
    from amed_env.agents import SearchResult


def show_result(output: Output, result: SearchResult, written: list[Path]) -> None:
    """Show the answer, its comparison and what went wrong; as a JSON document if that is asked for."""
    try:
        table = allocation_table(result)
        if table is not None:
            output.show(table)
    except BackendError as error:
        output.warn(f"the allocation is in allocation.json; its costs by layer are missing: {error}")
    if result.finalists is not None:
        output.show(finalists_table(result.finalists), f"Finalists: {result.finalists.sentence()}")
    output.show(comparison_table(result), _verdict(result), *(f"wrote {path}" for path in written))
    if result.best is None:
        output.warn(
            f"none of {result.evaluations} evaluated allocations is within the budget; try another agent, or more "
            f"evaluations{' (the first answer is, and stays in allocation.json)' if result.first_answers else ''}."
        )
    if result.faults:
        output.warn(f"{len(result.faults)} evaluations failed; result.json lists them. The first: {result.faults[0]}")
    summary = result.task.device_faults.summary()
    if summary:
        output.warn(summary)
    if result.gave_up:
        output.warn("too much failed in a row, so the search stopped; everything found is kept, --resume continues it.")
    output.document({**result.to_json(), "files": [str(path) for path in written]})


def _verdict(result: SearchResult) -> str:
    """One line: what was found, against the best uniform width within the budget.

    On unseen samples where it can be; what was chosen on the search split looks better there than it is.
    """
    spent = f"{result.evaluations} evaluations in {result.seconds:.1f} s"
    if result.best is None:
        return f"Nothing within the budget was found ({spent})."
    if result.verdict is not None:
        return f"{result.agent}, {spent}: {result.verdict.sentence()}"
    score = result.task.score
    text = f"{result.agent}: {score.described(result.best.quality.score)} on the search split"
    uniform = result.best_uniform()
    if uniform is not None:
        baseline, bits = result.baselines[uniform], uniform.removeprefix("uniform-")
        if baseline.allocation == result.best.allocation:
            text += f"; that is uniform {bits} bit, than which it found nothing better"
        else:
            of_uniform = score.text(baseline.quality.score)
            text += f", best uniform width within the budget ({bits} bit): {of_uniform}"
    elif result.baselines:
        text += ", no uniform width is within the budget"
    return f"{text} ({spent})."
