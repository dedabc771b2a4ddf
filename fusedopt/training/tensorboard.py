"""Epochs for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from fusedopt.training.epoch import Epoch


class EventLog:
    """Writes each epoch's numbers as TensorBoard events, for `tensorboard --logdir`.

    Args:
        folder: for the event file.
        first: the first epoch that will come; later ones of an earlier part of the run are hidden.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, first: int = 1) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first)

    def add(self, epoch: Epoch) -> None:
        """Writes an epoch."""
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
        self._writer.close()
