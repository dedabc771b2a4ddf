"""Learning-rate schedules over a whole training, by name."""

from __future__ import annotations

import warnings
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fusedopt.schedulers.device import DeviceSchedule, on_device
from fusedopt.schedulers.gallery import GALLERY, check_range


class Schedule:
    """A schedule that is advanced after each optimizer step, from the first one to the last.

    Args:
        name: a key of `fusedopt.schedulers.gallery.GALLERY`.
        optimizer: with the highest learning rate.
        steps: of the whole training.
        min_lr: the lowest learning rate, for schedules that have one; None is a tenth of the highest.
        captured: whether the steps are those of a CUDA graph: learning rates are then tensors, which it reads anew.

    Raises:
        ValueError: the learning rates are out of range.
    """

    def __init__(
        self, name: str, optimizer: Optimizer, steps: int, min_lr: float | None = None, *, captured: bool = False
    ) -> None:
        high = float(optimizer.param_groups[0]["lr"])
        low = high / 10 if min_lr is None else min_lr
        check_range(name, low, high)
        scheduler = GALLERY[name](optimizer, steps, low, high)
        self._scheduler: LRScheduler | DeviceSchedule = on_device(scheduler, steps) if captured else scheduler
        self._name, self._steps, self._taken = name, steps, 0

    def advance(self) -> None:
        """Sets the learning rate of the next step; after the last there is none to set."""
        self._taken += 1
        if self._taken >= self._steps:
            return
        with warnings.catch_warnings():
            if self._taken == 1:  # GradScaler may have left out the first step, which torch takes for a missing one
                warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before")
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Returns what the schedule is, the number of steps taken, and the state of the scheduler."""
        state = self._scheduler.state_dict()
        return {"name": self._name, "steps": self._steps, "taken": self._taken, "scheduler": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state.

        Raises:
            ValueError: it is that of another schedule, or of a training of another length.
        """
        saved, own = (state["name"], state["steps"]), (self._name, self._steps)
        if saved != own:
            raise ValueError(f"{saved[0]} over {saved[1]} steps there, {own[0]} over {own[1]} here")
        self._taken = state["taken"]
        self._scheduler.load_state_dict(state["scheduler"])
