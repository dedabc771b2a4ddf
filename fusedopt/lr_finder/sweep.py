"""The range test itself: a training step at each learning rate, until the end or until the loss diverges."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedopt.lr_finder.batches import DataLoaderIter, Passes, detached, endless
from fusedopt.lr_finder.curve import Curve, whole
from fusedopt.lr_finder.step import Task
from fusedopt.optim import refuse_in_backward

Progress = Callable[[Iterable[int], int], Iterable[int]]
"""Wraps the iterations, given their number: for a progress bar."""

# How many steps ahead of the check for divergence a device may be. The host then waits for a loss that was computed
# a while ago, not for the work in progress; and since the number is fixed, the ranks of a group stay in step.
DEVICE_LAG = 4


def sweep(
    task: Task,
    ramps: Sequence[Sequence[float]],
    train_loader: Any,
    val_loader: Any,
    curve: Curve,
    *,
    accumulation_steps: int = 1,
    steps_per_lr: int = 1,
    progress: Progress | None = None,
    lag: int | None = None,
) -> None:
    """Runs the range test and fills the curve. What it changes is for the caller to put back.

    Args:
        task: what is trained.
        ramps: the learning rates of each parameter group; the first group's are recorded.
        train_loader: any iterable of batches, started over when it is exhausted.
        val_loader: if not None, the mean loss over it takes the place of the training loss.
        curve: empty; ends where a check after every step would have ended it, whatever the lag.
        accumulation_steps: batches per optimizer step.
        steps_per_lr: optimizer steps at each learning rate; their mean loss is recorded.
        progress: wraps the iterations.
        lag: steps that may be under way when a loss is looked at; by default 0 on the CPU and `DEVICE_LAG` elsewhere.
    """
    accumulation_steps = whole("accumulation_steps", accumulation_steps)
    steps_per_lr = whole("steps_per_lr", steps_per_lr)
    for name, value in (("accumulation_steps", accumulation_steps), ("steps_per_lr", steps_per_lr)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if accumulation_steps > 1:
        refuse_in_backward(task.optimizer, "accumulation_steps")
    if lag is None:
        lag = 0 if task.device.type == "cpu" else DEVICE_LAG
    ready_made = isinstance(train_loader, DataLoaderIter)
    batches: Iterator[Any] = train_loader if ready_made else endless(Passes(detached(train_loader)))
    val_batches = val_loader
    if val_loader is not None and not isinstance(val_loader, DataLoaderIter):
        val_batches = Passes(detached(val_loader))
    recorded = ramps[0]
    underway: deque[_Loss] = deque()
    iterations: Iterable[int] = range(len(recorded))
    for i in iterations if progress is None else progress(iterations, len(recorded)):
        set_lrs(task.optimizer, [lrs[i] for lrs in ramps])
        try:
            loss = _mean([task.train(batches, accumulation_steps, ready_made) for _ in range(steps_per_lr)])
        except StopIteration as error:
            raise ValueError("the loader ran out of batches; let it start over (auto_reset=True)") from error
        underway.append(_Loss(loss if val_batches is None else task.validate(val_batches)))
        if len(underway) > lag and not curve.add(recorded[i - lag], underway.popleft().value()):
            return
    for i, loss_underway in enumerate(underway, start=len(recorded) - len(underway)):
        if not curve.add(recorded[i], loss_underway.value()):
            return


def set_lrs(optimizer: Optimizer, lrs: Sequence[float]) -> None:
    """Gives each parameter group its learning rate; one that is a tensor is filled, for who captured its address."""
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def _mean(losses: list[Tensor]) -> Tensor:
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


class _Loss:
    """A loss on its way to the host, without stopping for it."""

    def __init__(self, loss: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._loss = loss
        if loss.device.type == "cuda":
            self._loss = torch.empty((), dtype=loss.dtype, pin_memory=True)
            self._loss.copy_(loss, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(loss.device))

    def value(self) -> float:
        """The loss; waits for it if need be."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._loss)
