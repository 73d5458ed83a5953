"""Making quality tables: every allocation is evaluated once, a chunk of neighbours at a time, kept on disk."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from amed_env._version import __version__
from amed_env.errors import TableError
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.evaluation.quality import SPLITS, Progress, Quality
from amed_env.evaluation.table_file import QualityTable, check_size, members_of
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.score import DIVERGENCE
from amed_env.problem.ties import Ties
from amed_env.support.files import write_atomically
from amed_env.support.machine import cpu_name

logger = logging.getLogger(__name__)

MOST_SAMPLES = 65_535
"""Of a split, as the numbers of correct ones are kept in 16 bits."""
CHUNK_ROWS = 1_024
"""Allocations of one chunk: what a killed build loses at most, for each worker."""
FACTS_FILE = "facts.json"


class TableBuilder:
    """Evaluates every allocation of a network.

    Args:
        evaluator: The evaluator of the network; the table holds divergences if it is scored by them.
        bits: Widths that every layer chooses from, weights and activations alike.
        tied: Groups of layers that share a choice.
        folder: Where finished chunks are kept; a build that is started again goes on from there.
        workers: Processes; 1 works in this one.

    Raises:
        TableError: If there are too many allocations or samples, samples have no class labels, or the folder has chunks
            of another table.
    """

    def __init__(
        self,
        evaluator: PostTrainingEvaluator,
        bits: Sequence[int],
        tied: Iterable[Sequence[str]],
        folder: Path,
        workers: int = 1,
    ) -> None:
        self.evaluator, self.folder, self.workers = evaluator, folder, workers
        self.ties = Ties.of(evaluator.workload, tied)
        self.precisions = tuple(Precision(width, width) for width in sorted(bits))
        self.rows = check_size(len(self.ties.groups), len(self.precisions))
        self.chunk_rows = CHUNK_ROWS * workers
        with_divergence = evaluator.score == DIVERGENCE
        self.columns = ("correct", "loss", "divergence") if with_divergence else ("correct", "loss")
        for split in SPLITS:
            labels = evaluator.samples(split).labels
            if labels is None or labels.dim() != 1 or labels.is_floating_point():
                raise TableError(f"the {split} samples have no class each; a table counts the correct ones.")
            if len(evaluator.samples(split)) > MOST_SAMPLES:
                raise TableError(
                    f"the {split} split has {len(evaluator.samples(split)):,} samples; a table counts up to "
                    f"{MOST_SAMPLES:,}. Give a part of them."
                )
        self._bind()

    def _bind(self) -> None:
        facts = {
            "fingerprint": self.evaluator.fingerprint,
            "groups": [list(group) for group in self.ties.groups],
            "precisions": [list(precision) for precision in self.precisions],
            # Left out of chunks that earlier versions could make, so that their builds can go on.
            **({"columns": list(self.columns)} if "divergence" in self.columns else {}),
        }
        path = self.folder / FACTS_FILE
        if path.exists():
            if json.loads(path.read_text(encoding="utf-8")) != facts:
                raise TableError(f"{self.folder} has chunks of another table; choose another folder, or remove it.")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    def allocation(self, row: int) -> BitAllocation:
        """The allocation of all layers in a row."""
        choices = np.unravel_index(row, (len(self.precisions),) * len(self.ties.groups))
        names = self.ties.names
        return self.ties.expand(
            BitAllocation({name: self.precisions[int(choice)] for name, choice in zip(names, choices, strict=True)})
        )

    def build(self, progress: Progress | None = None, rows: int | None = None) -> QualityTable | None:
        """Evaluate what is not evaluated yet.

        Args:
            progress: Called after every chunk.
            rows: Stop after so many rows, to measure how long it takes; None goes to the end.

        Returns:
            The table, or None if it was stopped before the end.
        """
        until = self.rows if rows is None else min(rows, self.rows)
        columns = np.zeros((len(SPLITS), len(self.columns), self.rows))
        done = 0
        while done < until:
            chunk = self._kept(done)
            if chunk is None:
                end = min(done + self.chunk_rows, until)
                chunk = self._evaluate(range(done, end))
                self._keep(done, chunk)
            columns[:, :, done : done + chunk.shape[2]] = chunk
            done += chunk.shape[2]
            if progress is not None:
                progress(done, self.rows)
        return self._table(columns) if done == self.rows else None

    def _evaluate(self, rows: range) -> npt.NDArray[np.float64]:
        """The columns of each split: float64 (splits, columns, rows)."""
        allocations = [self.allocation(row) for row in rows]
        values = np.zeros((len(SPLITS), len(self.columns), len(rows)))
        for position, split in enumerate(SPLITS):
            qualities = self.evaluator.evaluate_many(allocations, split, workers=self.workers)
            values[position, 0] = [quality.correct for quality in qualities]
            values[position, 1] = [quality.loss for quality in qualities]
            if "divergence" in self.columns:
                values[position, 2] = [quality.score for quality in qualities]
        return values

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:08d}.npy"

    def _kept(self, start: int) -> npt.NDArray[np.float64] | None:
        try:
            chunk = np.load(self._path(start), allow_pickle=False)
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged file makes numpy raise errors of many types
            logger.warning("%s is damaged (%s); it is made anew", self._path(start), error)
            return None
        whole = chunk.dtype == np.float64 and chunk.ndim == 3 and chunk.shape[:2] == (len(SPLITS), len(self.columns))
        if not whole or not 0 < chunk.shape[2] <= self.rows - start or not np.isfinite(chunk).all():
            logger.warning("%s is no chunk of this table; it is made anew", self._path(start))
            return None
        return np.asarray(chunk)

    def _keep(self, start: int, chunk: npt.NDArray[np.float64]) -> None:
        content = io.BytesIO()
        np.save(content, chunk, allow_pickle=False)
        write_atomically(self._path(start), content.getvalue())

    def _table(self, columns: npt.NDArray[np.float64]) -> QualityTable:
        evaluator = self.evaluator
        float_allocation = evaluator.workload.uniform(32)
        float_quality: dict[str, Quality] = {}
        for split in SPLITS:
            quality = evaluator.evaluate(float_allocation, split)
            float_quality[split] = Quality(quality.correct, quality.samples, quality.loss)
        members = members_of(self.ties)
        predicted, statistics = evaluator.predicted_loss(self.precisions), evaluator.weight_statistics()
        divergence: dict[str, npt.NDArray[np.float16]] | None = None
        if "divergence" in self.columns:
            divergence = {split: columns[i, 2].astype(np.float16) for i, split in enumerate(SPLITS)}
        return QualityTable(
            self.ties,
            self.precisions,
            {split: columns[i, 0].astype(np.uint16) for i, split in enumerate(SPLITS)},
            {split: columns[i, 1].astype(np.float16) for i, split in enumerate(SPLITS)},
            float_quality,
            np.stack([predicted[group].sum(axis=0) for group in members]),
            np.asarray([statistics[group].max() for group in members]),
            evaluator.kept_float,
            self._provenance(),
            divergence,
        )

    def _provenance(self) -> dict[str, Any]:
        evaluator = self.evaluator
        samples = {"calibration": evaluator.samples("calibration").fingerprint()}
        samples |= {split: evaluator.samples(split).fingerprint() for split in SPLITS}
        made_of = hashlib.sha256(evaluator.made_of.encode()).hexdigest()
        return {
            "recipe": asdict(evaluator.recipe),
            "fingerprint": evaluator.fingerprint,
            "network_and_calibration": made_of,
            "samples": samples,
            "in_float": dict(evaluator.in_float),
            "versions": {
                "amed_env": __version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
            "machine": {
                "architecture": platform.machine(),
                "processor": cpu_name(),
                "instructions": torch.backends.cpu.get_cpu_capability(),
                "system": platform.system(),
            },
            "made": datetime.now(UTC).date().isoformat(),
        }
