"""Epochs for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fusedopt.extras import named_if_missing
from fusedopt.runs.epoch import Epoch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class EventLog:
    """Writes each epoch's numbers as TensorBoard events, for `tensorboard --logdir`.

    Args:
        folder: for the event file, which begins with the first epoch: where a run is resumed, that hides the epochs
            which are trained again.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        with named_if_missing():
            from torch.utils.tensorboard import SummaryWriter
        self._open: Callable[..., SummaryWriter] = partial(SummaryWriter, str(folder))
        self._writer: SummaryWriter | None = None

    def add(self, epoch: Epoch) -> None:
        """Writes an epoch."""
        if self._writer is None:
            self._writer = self._open(purge_step=epoch.number)
        curves = {
            "loss/train": epoch.train_loss,
            "loss/test": epoch.test_loss,
            "accuracy/train": epoch.train_accuracy,
            "accuracy/test": epoch.test_accuracy,
            "lr": epoch.lr,
            "images per second": epoch.images_per_second,
            "share of optimizer.step": epoch.step_seconds / epoch.seconds,
        }
        for name, value in curves.items():
            self._writer.add_scalar(name, value, epoch.number)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
