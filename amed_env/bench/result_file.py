"""Files of results: one agent's runs on the cells of a suite, in format `amed-bench-result`, version 1.

A file is UTF-8 text with one JSON object a line: a header, then one run a line. Regret is not in it: it is computed
from the table, so nobody can claim it. Reading is strict; whatever does not belong is an error with file and line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from amed_env.bench.limits import MOST_EVALUATIONS, MOST_SEEDS
from amed_env.bench.suites import Cell
from amed_env.errors import BenchFileError
from amed_env.problem.objective import BUDGET_METRICS
from amed_env.support.typed_fields import faults_of

FORMAT = "amed-bench-result"
VERSION = 1
SUFFIX = ".jsonl"
_MOST_PROBLEMS = 3  # that a message lists


def _known_budgets(values: dict[str, float]) -> dict[str, float]:
    unknown = sorted(set(values) - set(BUDGET_METRICS))
    if unknown:
        raise ValueError(f"unknown budget {', '.join(map(repr, unknown))}; known: {', '.join(BUDGET_METRICS)}")
    return values


def one_line(text: str) -> str:
    """A text in one line of printable characters, so that it cannot break a terminal or a table."""
    printable = (character if character.isprintable() else " " for character in text)
    return " ".join("".join(printable).split())


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[str, AfterValidator(one_line)]
Name = Annotated[str, Field(min_length=1), AfterValidator(one_line)]
Factors = Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1), AfterValidator(_known_budgets)]


class Improvement(_Strict):
    """A feasible trial that was better than all before it.

    Attributes:
        evaluation: Number of the distinct evaluation, from 1.
        choices: For every layer (or group of tied layers) a digit: its precision's number among the task's.
        allocation: The widths of every layer, if given, as `{"layer": {"w": 8, "a": 8}}`.
        accuracy: In percent, on the search split.
        loss: Mean cross-entropy in nats, on the search split.
        correct: Correct samples of the search split.
        relative_costs: Budget names to factors of the uniform 8-bit cost.
        feasible: Always true.
    """

    evaluation: Positive
    choices: Annotated[str, Field(pattern=r"^[0-9]+$")]
    allocation: dict[str, dict[Literal["w", "a"], int]] | None = None
    accuracy: Annotated[float, Field(ge=0, le=100)]
    loss: Annotated[float, Field(ge=0)]
    correct: Count
    relative_costs: Factors
    feasible: Literal[True] = True


class Run(_Strict):
    """One search of an agent in one cell.

    Attributes:
        task: Task of the cell.
        device: Device of the cell.
        budget: Budget names to factors of the uniform 8-bit cost.
        seed: Seed of the search.
        evaluations: Distinct allocations whose quality was asked for.
        improvements: Each best trial so far, in order.
        sequence: SHA-256 (hex) over the evaluated allocations in their order; see `sequence_digest`.
        faults: Evaluations that failed.
        seconds: Duration of the search.
        note: What ended the run before its time, if anything did.
    """

    task: Line
    device: Line
    budget: Factors
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    evaluations: Count
    improvements: tuple[Improvement, ...]
    sequence: Digest
    faults: Count
    seconds: Annotated[float, Field(ge=0)]
    note: Line | None = None

    @property
    def cell(self) -> Cell:
        """The cell."""
        return Cell(self.task, self.device, tuple(self.budget.items()))

    @property
    def key(self) -> tuple[Cell, int]:
        """Cell and seed, which no two runs of a file share."""
        return self.cell, self.seed


class Header(_Strict):
    """The first line of a file.

    Attributes:
        suite: Name of the suite.
        cells: `held-out` or `development`.
        agent: Name of the agent.
        spec: What makes the agent, as given to `make_agent`.
        options: Options of the agent.
        family: `learner` or `search`.
        description: One line.
        recipe: SHA-256 (hex) of the agent's recipe or module, which older versions wrote; nothing depends on it.
        evaluations: Distinct evaluations that each run had.
        seeds: Number of seeds, which are 0, 1, 2 …
        saw: What the agent was tuned on; empty for nothing.
        versions: Versions of what a result depends on.
        tables: Task to the digest of its table (or of network, data and recipe).
        machine: System, processor and its vector instructions.
        made: Date (ISO 8601).
    """

    format: Literal["amed-bench-result"] = "amed-bench-result"
    version: Literal[1] = 1
    suite: Line
    cells: Literal["held-out", "development"]
    agent: Name
    spec: Name
    options: dict[str, Any]
    recipe: Digest | None = None
    family: Literal["learner", "search"]
    description: Line
    evaluations: Annotated[int, Field(ge=1, le=MOST_EVALUATIONS)]
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)]
    saw: tuple[Line, ...]
    versions: Annotated[dict[Line, Line], Field(min_length=1)]
    tables: dict[Line, Digest]
    machine: Line
    made: Line


M = TypeVar("M", Header, Run)


@dataclass(frozen=True)
class ResultFile:
    """A file that was read.

    Attributes:
        path: Where it is.
        header: Its first line.
        runs: Its runs, in their order.
        digest: SHA-256 (hex) of its bytes.
    """

    path: Path
    header: Header
    runs: tuple[Run, ...]
    digest: str


def read_result(path: str | Path) -> ResultFile:
    """Read a file.

    Raises:
        BenchFileError: If it is missing, empty, cut off, or has a line that does not belong; the message has the line.
    """
    path = Path(path)
    content = _content(path)
    if not content:
        raise BenchFileError(f"{path} is empty; get the file again, or make it with amed bench.")
    if not content.endswith(b"\n"):
        raise BenchFileError(
            f"{path} is cut off: its last line has no end. Continue the benchmark with --resume, or get the file again."
        )
    lines = _lines(content, path)
    header = _parsed(Header, lines[0], path, 1)
    runs = tuple(_parsed(Run, line, path, number) for number, line in enumerate(lines[1:], 2))
    seen: dict[tuple[Cell, int], int] = {}
    for number, run in enumerate(runs, 2):
        if run.key in seen:
            raise BenchFileError(
                f"{path}, line {number}: seed {run.seed} of {run.cell} stands in line {seen[run.key]} already."
            )
        seen[run.key] = number
    return ResultFile(path, header, runs, hashlib.sha256(content).hexdigest())


def require_different_agents(results: Iterable[ResultFile]) -> None:
    """Refuse two files of one agent, of which nobody knows whose numbers would be shown.

    Raises:
        BenchFileError: If there are two.
    """
    paths: dict[str, Path] = {}
    for result in results:
        agent = result.header.agent
        if agent in paths:
            raise BenchFileError(f"{result.path} and {paths[agent]} both hold runs of {agent!r}; keep one of them.")
        paths[agent] = result.path


def whole_lines(path: Path) -> bytes:
    """What is left of a file whose writer was killed: everything up to the last line that has an end.

    Raises:
        BenchFileError: If it cannot be read.
    """
    content = _content(path)
    return content[: content.rfind(b"\n") + 1]


def line_of(model: Header | Run) -> bytes:
    """A line of a file, its end included."""
    return json.dumps(model.model_dump(exclude_none=True), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def contents_of(header: Header, runs: Iterable[Run]) -> bytes:
    """A whole file."""
    return line_of(header) + b"".join(line_of(run) for run in runs)


def sequence_digest(keys: Iterable[str]) -> str:
    """SHA-256 (hex) over allocations in the order of their evaluation.

    Args:
        keys: The `BitAllocation.key` of each; a line each in the digest.
    """
    digest = hashlib.sha256()
    for key in keys:
        digest.update(f"{key}\n".encode())
    return digest.hexdigest()


def problems_of(error: ValidationError) -> list[str]:
    """What was wrong where, a text for each."""
    return list(map(one_line, faults_of(error)))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BenchFileError(f"cannot read the results {path}: {error.strerror}.") from error


def _lines(content: bytes, path: Path) -> list[str]:
    try:
        return content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise BenchFileError(f"{path}, line {number}: no UTF-8 text ({error.reason}).") from error


def _parsed(model: type[M], line: str, path: Path, number: int) -> M:
    where = f"{path}, line {number}"
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        problems = problems_of(error)
        more = f" (and {len(problems) - _MOST_PROBLEMS} more)" if len(problems) > _MOST_PROBLEMS else ""
        raise BenchFileError(
            f"{where} is no {model.__name__.lower()} of {FORMAT} {VERSION}: "
            f"{'; '.join(problems[:_MOST_PROBLEMS])}{more}."
        ) from error
