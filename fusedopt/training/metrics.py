"""Loss and accuracy over images, added up where they are computed, and what follows from the best of them."""

from __future__ import annotations

import math
from itertools import groupby
from time import perf_counter
from types import TracebackType

import torch
from torch import Tensor

from fusedopt.training.distributed import World

_AT_ONCE = 32  # batches


def correct(scores: Tensor, targets: Tensor) -> Tensor:
    """Returns which of the scores [N, classes] are highest at the target, labels [N] or probabilities [N, classes].

    Bool [N] on the device.
    """
    labels = targets if targets.dim() == 1 else targets.argmax(dim=1)
    return scores.argmax(dim=1) == labels


class Metrics:
    """Mean loss and accuracy over images; only reading them waits for the device.

    Batches are added up some at a time: the small operations cost as much for one as for many.

    Args:
        device: where losses and counts come from.
        total: how many images there will be.

    Attributes:
        images: how many there have been.
    """

    def __init__(self, device: torch.device, total: int) -> None:
        self.total, self.images = total, 0
        self._uncounted: list[tuple[int, Tensor, Tensor]] = []
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, loss: Tensor, scores: Tensor, targets: Tensor, images: int) -> None:
        """Adds a batch of that many images; one of 0 is left out.

        Args:
            loss: the batch's mean, without a gradient.
            scores: [N, classes], without a gradient.
            targets: labels [N] or probabilities [N, classes].
            images: how many count.
        """
        if images:
            self.images += images
            # Both in memory of their own: what is given may be overwritten by the next batch, as a CUDA graph does.
            self._uncounted.append((images, loss.to(torch.float64, copy=True), correct(scores, targets)))
            if len(self._uncounted) == _AT_ONCE:
                self._count()

    def _count(self) -> None:
        for images, batches in groupby(self._uncounted, key=lambda batch: batch[0]):
            _, losses, right = zip(*batches, strict=True)
            self._loss += torch.stack(losses).sum() * images
            self._correct += torch.cat(right).sum()
        self._uncounted.clear()

    @property
    def loss(self) -> float:
        """The mean loss over the images so far; NaN where there are none."""
        self._count()
        return float(self._loss) / self.images if self.images else math.nan

    @property
    def accuracy(self) -> float:
        """The share of the images so far that were classified correctly, 0 to 1; NaN where there are none."""
        self._count()
        return int(self._correct) / self.images if self.images else math.nan

    def over(self, world: World) -> Metrics:
        """Adds up what the processes have, in place, and returns it."""
        self._count()
        if world.size > 1:
            images = torch.tensor(float(self.images), dtype=torch.float64, device=self._loss.device)
            sums = world.sum(torch.stack([self._loss, self._correct.double(), images]))
            self._loss, self._correct, self.images = sums[0], sums[1].long(), round(float(sums[2]))
        return self


class Stopwatch:
    """Adds up the time between entering and leaving: the host's for the CPU, the device's for a GPU.

    On a GPU it leaves events behind, and only `seconds` waits for them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._on_gpu = device, device.type == "cuda"
        self._seconds = self._start = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self._on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record(torch.cuda.current_stream(self._device))
            self._events.append((start, end))
        else:
            self._start = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on_gpu:
            self._events[-1][1].record(torch.cuda.current_stream(self._device))
        else:
            self._seconds += perf_counter() - self._start

    def seconds(self) -> float:
        """Returns the time since the last call of this, and starts anew."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1000
            self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class EarlyStopping:
    """Keeps the best value of a metric, and counts the epochs since.

    Args:
        patience: epochs in a row without a better value after which it is over; None is never.

    Attributes:
        best: the highest value so far.
        waited: epochs since.
    """

    def __init__(self, patience: int | None = None) -> None:
        self.patience = patience
        self.best, self.waited = -math.inf, 0

    @property
    def over(self) -> bool:
        """Whether to stop."""
        return self.patience is not None and self.waited >= self.patience

    def update(self, metric: float) -> bool:
        """Takes the value of an epoch; returns whether it is better than all before. NaN never is."""
        better = metric > self.best
        self.best, self.waited = (metric, 0) if better else (self.best, self.waited + 1)
        return better

    def state_dict(self) -> dict[str, float]:
        """Returns the best value and the number of epochs since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from a state."""
        self.best, self.waited = state["best"], int(state["waited"])
