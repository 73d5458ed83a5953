"""The learning curve of a training: a CSV file, and scalars for TensorBoard."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import TracebackType

from amed_env.support.files import write_atomically
from amed_env.training.finetuning import Epoch, Finetuning

CURVE, TENSORBOARD = "curve.csv", "tensorboard"
LOGGED_STEPS = 10
"""Every so many steps the loss of a batch goes to TensorBoard."""
COLUMNS = (
    "epoch",
    "step",
    "training_loss",
    "training_accuracy",
    "validation_loss",
    "validation_accuracy",
    "seconds",
    "allocation",
)


class CurveLog:
    """Writes the curve as training goes on, as a context manager.

    Args:
        folder: The run folder.
        step: Steps that were made before; what TensorBoard has beyond them is dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        # Here, as TensorBoard is needed for a training alone.
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer = SummaryWriter(folder / TENSORBOARD, purge_step=step + 1)
        self._epochs, self._step = 0, step

    def __enter__(self) -> CurveLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def update(self, finetuning: Finetuning) -> None:
        """Take over what is new."""
        trainer, add = finetuning.trainer, self._writer.add_scalar
        if trainer.step > self._step and trainer.step % LOGGED_STEPS == 0:
            add("training/loss of a batch", trainer.batch_loss, trainer.step)
            add("training/learning rate", trainer.decay * finetuning.settings.learning_rate, trainer.step)
        self._step = trainer.step
        if len(finetuning.history) == self._epochs:
            return
        for epoch in finetuning.history[self._epochs :]:
            add("validation/accuracy", epoch.validation.accuracy, epoch.step)
            add("validation/loss", epoch.validation.loss, epoch.step)
            if epoch.training_loss is not None and epoch.training_accuracy is not None:
                add("training/accuracy", epoch.training_accuracy, epoch.step)
                add("training/loss", epoch.training_loss, epoch.step)
        self._epochs = len(finetuning.history)
        self._writer.flush()
        write_atomically(self._folder / CURVE, curve_csv(finetuning.history))


def curve_csv(history: list[Epoch]) -> str:
    """The curve as CSV, a line an epoch; empty cells where the start has no training."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for epoch in history:
        writer.writerow(
            [
                epoch.epoch,
                epoch.step,
                _cell(epoch.training_loss),
                _cell(epoch.training_accuracy),
                _cell(epoch.validation.loss),
                _cell(epoch.validation.accuracy),
                f"{epoch.seconds:.1f}",
                epoch.allocation,
            ]
        )
    return text.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
