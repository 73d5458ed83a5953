"""Trials, and the store that keeps every one of them: cache, resume and archive in one SQLite file."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amed_env.errors import AllocationError, StoreError
from amed_env.evaluation.quality import Quality
from amed_env.problem.allocation import BitAllocation

logger = logging.getLogger(__name__)

_SCHEMA_VERSION = 5
_ANSWERS = "CREATE TABLE answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL);"
"""Since version 2: what a slow device answered, by a digest of everything that it was asked."""
_PARTIAL = "ALTER TABLE trials ADD COLUMN partial INTEGER NOT NULL DEFAULT 0;"
"""Since version 3. Earlier versions of the package could end an evaluation before its last sample and marked such
estimates 1; nothing writes them any more, and they count as not evaluated."""
_SCORES = """
CREATE TABLE scored (
    number INTEGER PRIMARY KEY,
    allocation_key TEXT NOT NULL UNIQUE,
    allocation TEXT NOT NULL,
    correct INTEGER,
    samples INTEGER NOT NULL,
    loss REAL,
    costs TEXT NOT NULL,
    seconds REAL NOT NULL,
    created REAL NOT NULL,
    partial INTEGER NOT NULL DEFAULT 0,
    scores TEXT
);
INSERT INTO scored SELECT number, allocation_key, allocation, correct, samples, loss, costs, seconds, created, partial,
    NULL FROM trials;
DROP TABLE trials;
ALTER TABLE scored RENAME TO trials;
INSERT OR IGNORE INTO facts SELECT 'score', 'top-1' WHERE EXISTS (SELECT 1 FROM facts);
"""
"""Since version 4: score and metrics as JSON, and samples without labels. Earlier trials have none: their score is
top-1 accuracy, which the store is then tied to."""
_CHECKSUMS = "ALTER TABLE trials ADD COLUMN checksum TEXT; ALTER TABLE answers ADD COLUMN checksum TEXT;"
"""Since version 5; what was kept before has none, and is believed as it is."""
_COLUMNS = "allocation, correct, samples, loss, costs, seconds, scores"
_SCHEMA = """
CREATE TABLE trials (
    number INTEGER PRIMARY KEY,
    allocation_key TEXT NOT NULL UNIQUE,
    allocation TEXT NOT NULL,
    correct INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    loss REAL NOT NULL,
    costs TEXT NOT NULL,
    seconds REAL NOT NULL,
    created REAL NOT NULL
);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Trial:
    """An allocation that was evaluated.

    Attributes:
        allocation: The allocation.
        quality: Its quality on the search split.
        costs: Its cost by metric.
        seconds: How long the evaluation of its quality took.
    """

    allocation: BitAllocation
    quality: Quality
    costs: Mapping[str, float]
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Layers, quality and costs as a JSON object."""
        layers = self.allocation.to_json()["layers"]
        return {
            "layers": layers,
            "quality": self.quality.to_json(),
            "costs": dict(self.costs),
            "seconds": self.seconds,
        }


class TrialStore:
    """Every trial of a search, in the order of its evaluation.

    A trial is on disk before `add` returns, so a process that is killed loses none that was finished.

    Args:
        path: The SQLite file, made if it does not exist; None keeps the trials in memory.

    Raises:
        StoreError: If the file is no trial store or cannot be opened.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        try:
            self._connection = sqlite3.connect(":memory:" if path is None else str(path), isolation_level=None)
        except sqlite3.Error as error:
            raise StoreError(f"cannot open the trial store {path}: {error}.") from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._connection.close()
            raise StoreError(f"cannot open the trial store {path}: {error}. If it is damaged, move it away.") from error
        except StoreError:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            raise StoreError(f"{self.path} is a database of another program; choose another file.")
        if version not in range(_SCHEMA_VERSION + 1):
            raise StoreError(
                f"{self.path} has trial-store version {version}, this program reads {_SCHEMA_VERSION}; "
                "use the version of amed-env that wrote it, or another folder."
            )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")  # WAL survives a killed process
        steps = [_SCHEMA, _ANSWERS, _PARTIAL, _SCORES, _CHECKSUMS][version:]
        if steps:
            self._connection.executescript(f"BEGIN;{''.join(steps)}PRAGMA user_version={_SCHEMA_VERSION};COMMIT;")

    def get(self, allocation: BitAllocation) -> Trial | None:
        """The trial of an allocation, or None if it was never evaluated."""
        rows = self._sound_rows("WHERE allocation_key=? AND NOT partial", (allocation.key(),))
        return _trial(rows[0]) if rows else None

    def _sound_rows(self, where: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of trials whose checksum is right; others are gone, so that they are evaluated again."""
        sound, damaged = [], []
        for number, checksum, *row in self._run(f"SELECT number, checksum, {_COLUMNS} FROM trials {where}", values):
            if checksum is None or checksum == _checksum(row):
                sound.append(tuple(row))
            else:
                damaged.append(number)
        if damaged:
            logger.warning(
                "%s is damaged: %d of its trials do not match their checksums and are evaluated again.",
                self.path or "the trial store",
                len(damaged),
            )
            for number in damaged:
                self._run("DELETE FROM trials WHERE number=?", (number,))
        return sound

    def add(self, trial: Trial) -> None:
        """Keep a trial; one of the same allocation that is there already stays, unless it is an estimate.

        Raises:
            StoreError: If it cannot be written, for example on a full disk, or its quality is NaN.
        """
        quality = trial.quality
        if math.isnan(quality.score) or (quality.loss is not None and math.isnan(quality.loss)):
            raise StoreError(f"the trial {trial.allocation.key()!r} has a quality of NaN, which no search can order.")
        scores = quality.to_json()
        for name in ("correct", "accuracy", "samples", "loss"):  # these have columns of their own
            scores.pop(name, None)
        row = (
            json.dumps(trial.allocation.to_json()),
            None if quality.correct is None else int(quality.correct),
            int(quality.samples),
            # As SQLite gives them back: a zero has no sign there.
            None if quality.loss is None else float(quality.loss) + 0.0,
            json.dumps(dict(trial.costs)),
            float(trial.seconds) + 0.0,
            json.dumps(scores),
        )
        self._run(
            f"INSERT INTO trials (allocation_key, created, checksum, {_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?) "
            "ON CONFLICT (allocation_key) DO UPDATE SET allocation=excluded.allocation, correct=excluded.correct, "
            "samples=excluded.samples, loss=excluded.loss, costs=excluded.costs, seconds=excluded.seconds, partial=0, "
            "scores=excluded.scores, checksum=excluded.checksum WHERE trials.partial",
            (trial.allocation.key(), time.time(), _checksum(row), *row),
        )

    def answer(self, question: str) -> str | None:
        """What a device answered to a question that it was asked before, or None."""
        for answer, checksum in self._run("SELECT answer, checksum FROM answers WHERE question=?", (question,)):
            if checksum is None or checksum == _checksum((answer,)):
                return str(answer)
            logger.warning("%s is damaged: an answer of a device is asked for again.", self.path or "the trial store")
            self._run("DELETE FROM answers WHERE question=?", (question,))
        return None

    def add_answer(self, question: str, answer: str) -> None:
        """Keep a device's answer; one to the same question that is there already stays.

        Raises:
            StoreError: If it cannot be written.
        """
        self._run("INSERT OR IGNORE INTO answers VALUES (?,?,?)", (question, answer, _checksum((answer,))))

    def __iter__(self) -> Iterator[Trial]:
        """All trials, oldest first."""
        return iter([_trial(row) for row in self._sound_rows("WHERE NOT partial ORDER BY number")])

    def __len__(self) -> int:
        return int(self._run("SELECT COUNT(*) FROM trials WHERE NOT partial")[0][0])

    def bind(self, facts: Mapping[str, str]) -> None:
        """Tie the store to facts (fingerprints), or check that it is tied to the same ones.

        Raises:
            StoreError: If it holds trials of something else; what differs is named.
        """
        known = dict(self._run("SELECT name, value FROM facts"))
        differing = sorted(name for name, value in facts.items() if known.get(name, value) != value)
        if differing:
            raise StoreError(
                f"{self.path or 'the trial store'} holds trials of another {', '.join(differing)}; "
                "use another folder for this search."
            )
        for name, value in facts.items():
            self._run("INSERT OR IGNORE INTO facts VALUES (?,?)", (name, value))

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        self._connection.close()

    def _run(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(
                f"the trial store {self.path or 'in memory'} failed: {error}. Finished trials are kept; "
                "see that the disk has space and continue with --resume."
            ) from error


def _checksum(row: Sequence[Any]) -> str:
    """A digest (hex) of the values of a row as SQLite gives them back."""
    return hashlib.sha256(repr(tuple(row)).encode()).hexdigest()


def _trial(row: tuple[Any, ...]) -> Trial:
    allocation, correct, samples, loss, costs, seconds, scores = row
    try:
        quality = {"correct": correct, "samples": samples, "loss": loss, **(json.loads(scores) if scores else {})}
        return Trial(
            BitAllocation.from_json(json.loads(allocation)),
            Quality.from_json(quality),
            dict(json.loads(costs)),
            seconds,
        )
    except (ValueError, TypeError, KeyError, RecursionError, AllocationError) as error:
        raise StoreError(f"the trial store has a damaged row: {error}.") from error
