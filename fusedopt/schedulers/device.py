"""A schedule that runs on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fusedopt.schedulers.simulate import simulate


class DeviceSchedule:
    """Learning-rate tensors that follow a table on their device; made by `on_device`.

    `step()` is three small operations on the device, whatever the number of groups, without a host synchronisation:
    it may be captured in a CUDA graph together with the optimizer's step, and advances at each replay.
    """

    def __init__(self, optimizer: Optimizer, table: Tensor) -> None:
        self.optimizer = optimizer
        self._table = table  # [steps, groups]
        self._index = torch.zeros(1, dtype=torch.int64, device=table.device)
        self._row = table[:1].clone()
        self.lrs: list[Tensor] = list(self._row[0].unbind())
        """The groups' learning rates, scalars; the same memory for good, so that a captured graph stays valid."""
        self._attach()

    def step(self) -> None:
        """Advances the learning rates; after the last step of the table they stay as they are.

        Raises:
            RuntimeError: a group holds another learning rate, as after `optimizer.load_state_dict`; or one has been
                added, for which the table has none. Nothing has changed then.
        """
        self._refuse_added_groups()
        if any(group["lr"] is not lr for group, lr in zip(self.optimizer.param_groups, self.lrs, strict=True)):
            raise RuntimeError(
                "a group's lr is not this schedule's tensor any more: something has replaced it; after loading a state "
                "into the optimizer, call this schedule's load_state_dict"
            )
        self._index.add_(1).clamp_(max=len(self._table) - 1)
        self._refresh()

    def state_dict(self) -> dict[str, int]:
        """Returns the number of steps taken, as far as the table goes; waits for the device."""
        return {"step": int(self._index)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes to the step of a state and gives the groups their tensors again: after `optimizer.load_state_dict`.

        Raises:
            ValueError: the step is not in the table. Nothing has changed then.
            RuntimeError: a group has been added. Nothing has changed then.
        """
        self._refuse_added_groups()
        step = state_dict["step"]
        if not 0 <= step < len(self._table):
            raise ValueError(f"step {step} is not one of this schedule's {len(self._table)}; make it with more steps")
        self._index.fill_(step)
        self._refresh()
        self._attach()

    def _refuse_added_groups(self) -> None:
        if (added := len(self.optimizer.param_groups) - len(self.lrs)) > 0:
            raise RuntimeError(
                f"{added} parameter group(s) were added after on_device, which made the learning rates of all steps "
                f"for {len(self.lrs)}: add them before, or give them an optimizer and a schedule of their own"
            )

    def _refresh(self) -> None:
        torch.index_select(self._table, 0, self._index, out=self._row)

    def _attach(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.lrs, strict=True):
            group["lr"] = lr


def on_device(
    schedule: LRScheduler,
    steps: int,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> DeviceSchedule:
    """Puts a schedule on the device: the groups' learning rates become tensors that `step()` advances there.

    The values are those of the schedule, rounded to `dtype`; `schedule` itself is left as it is and is not to be
    stepped any more. For a captured step the optimizer needs `capturable=True`::

        schedule = on_device(CosineAnnealingLR(optimizer, T_max=1000), steps=1000)
        with torch.cuda.graph(graph):
            loss = train_step()
            optimizer.step()
            schedule.step()

    The capture itself runs nothing; steps taken to warm up before it count, unless the state is loaded anew.

    Args:
        schedule: any that needs no metric, at any step.
        steps: number of learning rates, that of the first step included; the last one stays.
        dtype: of the learning rates; float64 keeps the schedule's values exactly. torch's own CUDA kernels, those of
            `fused=True`, read a float32 one only.
        device: of the learning rates; by default that of the first parameter.

    Raises:
        ValueError: the schedule changes the momentum, which is not a tensor and would stay what it was at the capture;
            or as in `simulate`.
    """
    simulation = simulate(schedule, steps)
    if simulation.changes_momentum:
        raise ValueError(
            f"{type(schedule).__name__} changes the momentum, which a captured step cannot follow; "
            "make it with cycle_momentum=False"
        )
    optimizer = schedule.optimizer
    if device is None:
        device = optimizer.param_groups[0]["params"][0].device
    return DeviceSchedule(optimizer, simulation.lr.to(dtype).to(device))
