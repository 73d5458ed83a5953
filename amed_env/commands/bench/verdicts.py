"""Files of results, checked one after the other with progress, until Ctrl-C."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.progress import TaskID

from amed_env.bench.result_file import SUFFIX, one_line
from amed_env.bench.validation import Verdict, validate
from amed_env.commands.interrupts import Interrupts
from amed_env.commands.output import Output
from amed_env.commands.progress import progress_bars
from amed_env.errors import InputError


def files_of(paths: Sequence[Path]) -> list[Path]:
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


def verdicts_of(
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

            verdicts.append(validate(path, replays, workers=workers, on_progress=follow))
            bars.remove_task(bar)
            if verdicts[-1].interrupted:
                break
    if not verdicts or not verdicts[-1].interrupted:
        return verdicts, None
    left = len(files) - len(verdicts)
    output.note(f"interrupted in {verdicts[-1].path}; {left} of {len(files)} files were not looked at.")
    return verdicts, interrupts.exit_code or 130


def show_verdict(output: Output, verdict: Verdict) -> None:
    """Print what is known of a file."""
    output.show(f"{verdict.path}: {verdict.word} ({verdict.count})")
    texts = [*verdict.problems, *(f"not checked: {reason}" for reason in verdict.unchecked)]
    for text in (*texts, *(f"remark: {remark}" for remark in verdict.remarks)):
        output.show(f"  {one_line(text)}")  # with what a file says, which may hold ends of lines


def verdict_json(verdict: Verdict) -> dict[str, object]:
    """What is known of a file as a document."""
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
