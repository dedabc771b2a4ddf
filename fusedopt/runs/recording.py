"""What `fusedopt train --capture` keeps, over interruptions too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


class Recording:
    """The `history.pt` of a run: written after each epoch, and gone on with where the run is resumed.

    Args:
        folder: of the run.
        model: what trains.
        done: epochs in the run's last checkpoint. Records of later ones, which are trained again, are dropped.

    Raises:
        fusedopt.files.FileError: the file is damaged, or of another network.
    """

    def __init__(self, folder: Path, model: nn.Module, done: int = 0) -> None:
        from fusedopt.files import FileError
        from fusedopt.gradients import History, capture

        self.path = folder / "history.pt"
        earlier = History.load(self.path) if done and self.path.exists() else History()
        noted = earlier.epochs[:done]
        if done > len(noted):  # epochs that were trained without --capture
            noted += [_steps(folder)] * (done - len(noted))
        try:
            self.capture = capture(model, history=earlier, step=noted[-1] if noted else 0)
        except ValueError as error:
            raise FileError(f"{self.path}: {error}; restore it, or remove it to record from here on") from error
        self.capture.history.epochs = noted

    def epoch_over(self, number: int, *, save: bool = True) -> None:
        """Notes that an epoch, counted from 1, has ended, and saves: one process does, of several."""
        history = self.capture.history
        history.epochs = [*history.epochs[: number - 1], self.capture.step]
        if save:
            self.save()

    def save(self) -> None:
        """Writes what there is; raises fusedopt.files.FileError where it cannot."""
        if self.capture.history.steps:
            self.capture.history.save(self.path)


def _steps(folder: Path) -> int:
    """How many steps the run's last checkpoint has."""
    from fusedopt import files
    from fusedopt.runs.checkpoint import Checkpoint

    return int(files.load(Checkpoint(folder / "checkpoints").paths()[-1], "checkpoint")["position"]["step"])
