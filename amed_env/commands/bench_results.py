"""`amed bench validate` and `amed bench leaderboard`: what results are worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from amed_env.bench.leaderboard import leaderboard_figures, leaderboard_text
from amed_env.bench.result_file import SUFFIX
from amed_env.bench.validation import Verdict
from amed_env.bench.validation import validate as check
from amed_env.commands.interrupts import Interrupts
from amed_env.commands.output import Output
from amed_env.errors import InputError
from amed_env.run_folder import write_atomically


def validate(output: Output, files: Sequence[Path], replays: int | None, workers: int) -> int:
    """Check files.

    Returns:
        0 if all are valid, else 1.
    """
    verdicts = _verdicts(output, files, replays, workers)
    for verdict in verdicts:
        _tell(output, verdict)
    output.document({"files": [_json(verdict) for verdict in verdicts]})
    return 0 if all(verdict.valid for verdict in verdicts) else 1


def leaderboard(
    output: Output, results: Path, out: Path, replays: int | None, workers: int, figures: Path | None = None
) -> int:
    """Write the leaderboard, and its figures as JSON.

    Returns:
        0 if all files are valid, else 1.

    Raises:
        InputError: If there are no results, or none is valid.
    """
    files = sorted(results.glob(f"*{SUFFIX}"))
    if not files:
        raise InputError(f"{results} has no results (*{SUFFIX}); make some with: amed bench tiny --out {results}")
    verdicts = _verdicts(output, files, replays, workers)
    for verdict in verdicts:
        if not verdict.valid:
            _tell(output, verdict)
    text = leaderboard_text(verdicts)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text)
    if figures is not None:
        figures.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(figures, json.dumps(leaderboard_figures(verdicts), indent=1, sort_keys=True) + "\n")
    valid = sum(verdict.valid for verdict in verdicts)
    output.show(f"{out}: {valid} of {len(verdicts)} files are valid.")
    output.document({"leaderboard": str(out), "files": [_json(verdict) for verdict in verdicts]})
    return 0 if valid == len(verdicts) else 1


def _verdicts(output: Output, files: Sequence[Path], replays: int | None, workers: int) -> list[Verdict]:
    verdicts = []
    with output.status("validating") as say, Interrupts():
        for path in files:
            say(f"validating {path.name}")
            verdicts.append(check(path, replays, workers=workers, on_progress=say))
    return verdicts


def _tell(output: Output, verdict: Verdict) -> None:
    count = f"{verdict.claims} claims measured, {verdict.replayed} runs replayed"
    output.show(f"{verdict.path}: {verdict.word} ({count})")
    for problem in verdict.problems:
        output.show(f"  {problem}")
    for reason in verdict.unchecked:
        output.show(f"  not checked: {reason}")


def _json(verdict: Verdict) -> dict[str, object]:
    return {
        "file": str(verdict.path),
        "verdict": verdict.word,
        "problems": verdict.problems,
        "unchecked": verdict.unchecked,
        "claims": verdict.claims,
        "replayed": verdict.replayed,
    }
