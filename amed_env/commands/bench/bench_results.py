"""`amed bench validate` and `amed bench leaderboard`: what results are worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.progress import TaskID

from amed_env.bench.leaderboard import leaderboard_figures, leaderboard_text, rank
from amed_env.bench.result_file import SUFFIX, one_line
from amed_env.bench.validation import Verdict
from amed_env.bench.validation import validate as check
from amed_env.commands.interrupts import Interrupts
from amed_env.commands.output import Output
from amed_env.commands.progress import progress_bars
from amed_env.errors import InputError
from amed_env.support.files import write_atomically


def validate(output: Output, files: Sequence[Path], replays: int | None, workers: int) -> int:
    """Check files, or all of a folder.

    Returns:
        0 if all are valid; 1 if not; or 128 + the signal that ended it.
    """
    verdicts, code = _verdicts(output, _files_of(files), replays, workers)
    for verdict in verdicts:
        _tell(output, verdict)
    output.document({"files": [_json(verdict) for verdict in verdicts]})
    if code:
        return code
    return 0 if all(verdict.valid for verdict in verdicts) else 1


def leaderboard(
    output: Output, results: Path, out: Path, replays: int | None, workers: int, figures: Path | None = None
) -> int:
    """Write the leaderboard, and its figures as JSON.

    Returns:
        0 if all files are valid; 1 if not; or 128 + the signal that ended it, and nothing is written.

    Raises:
        InputError: If there are no results, none is valid, or two are of one agent.
    """
    files = _files_of([results])
    for target in (out, figures):
        if target is not None:
            _check_target(target)  # before the validation, which may take hours
    verdicts, code = _verdicts(output, files, replays, workers)
    for verdict in verdicts:
        if not verdict.valid or verdict.remarks:
            _tell(output, verdict)
    if code:
        output.document({"leaderboard": None, "files": [_json(verdict) for verdict in verdicts]})
        return code
    board = rank(verdicts)
    write_atomically(out, leaderboard_text(board))
    if figures is not None:
        write_atomically(figures, json.dumps(leaderboard_figures(board), indent=1, sort_keys=True) + "\n")
    valid = sum(verdict.valid for verdict in verdicts)
    replayed, runs = sum(verdict.replayed for verdict in verdicts), sum(verdict.runs for verdict in verdicts)
    rest = "" if replayed == runs else "; the counts of the others are unchecked"
    output.show(f"{out}: {valid} of {len(verdicts)} files are valid, {replayed} of {runs} runs replayed{rest}.")
    output.document({"leaderboard": str(out), "files": [_json(verdict) for verdict in verdicts]})
    return 0 if valid == len(verdicts) else 1


def _files_of(paths: Sequence[Path]) -> list[Path]:
    """The files, and those of folders.

    Raises:
        InputError: If a folder has none.
    """
    found: list[Path] = []
    for path in paths:
        files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path} has no results (*{SUFFIX}); make some with: amed bench tiny --out {path}")
        found += files
    return found


def _check_target(path: Path) -> None:
    """Make the folder of a file that will be written.

    Raises:
        InputError: If it cannot be a file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}: {path.parent}.") from error
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file to write.")


def _verdicts(
    output: Output, files: Sequence[Path], replays: int | None, workers: int
) -> tuple[list[Verdict], int | None]:
    """What is known of each file, and the exit code if a signal ended it; the last verdict is then of half a check."""
    verdicts: list[Verdict] = []
    bars = progress_bars(output.stderr, output.live)
    with bars, Interrupts() as interrupts:
        for path in files:
            bar = bars.add_task(path.name, total=None)

            def follow(done: int, total: int, bar: TaskID = bar) -> None:
                bars.update(bar, completed=done, total=total)
                interrupts.check()

            verdicts.append(check(path, replays, workers=workers, on_progress=follow))
            bars.remove_task(bar)
            if verdicts[-1].interrupted:
                break
    if not verdicts or not verdicts[-1].interrupted:
        return verdicts, None
    left = len(files) - len(verdicts)
    output.note(f"interrupted in {verdicts[-1].path}; {left} of {len(files)} files were not looked at.")
    return verdicts, interrupts.exit_code or 130


def _tell(output: Output, verdict: Verdict) -> None:
    output.show(f"{verdict.path}: {verdict.word} ({verdict.count})")
    texts = [*verdict.problems, *(f"not checked: {reason}" for reason in verdict.unchecked)]
    for text in (*texts, *(f"remark: {remark}" for remark in verdict.remarks)):
        output.show(f"  {one_line(text)}")  # with what a file says, which may hold ends of lines


def _json(verdict: Verdict) -> dict[str, object]:
    return {
        "file": str(verdict.path),
        "verdict": verdict.word,
        "problems": verdict.problems,
        "unchecked": verdict.unchecked,
        "remarks": verdict.remarks,
        "claims": verdict.claims,
        "runs": verdict.runs,
        "replayed": verdict.replayed,
    }
