"""Batch-size schedules: "Don't Decay the Learning Rate, Increase the Batch Size"."""

from __future__ import annotations

import math
from typing import Any

from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import BatchSampler, DataLoader

from fusedopt.schedulers.arguments import at_least
from fusedopt.schedulers.closed_form import check_state, set_lrs


class BatchSizeScheduler:
    """Increases the batch size where a schedule would decrease the learning rate.

    What sets the noise of SGD is lr / (B (1 - m)), for batch size B and momentum m. So instead of the schedule's lr the
    optimizer keeps the highest one the schedule has reached so far, and the batch size becomes
    B0 * highest / lr, rounded, where B0 is the batch size at the start. Where that would be more than
    `max_batch_size`, the batch size stays there and the learning rate decays for the rest, so that lr / B goes on as
    scheduled. Rising learning rates, as in a warm-up, stay as they are.

    With `base_momentum`, the momentum for which B0 was chosen, the batch size is also multiplied by
    (1 - base_momentum) / (1 - m), for the momentum m that the optimizer's first group has now.

    Call `step` once after each epoch: the new batch size is that of the loader's next iteration, with any number of
    workers, persistent ones included, and with any sampler. With a
    :class:`~torch.utils.data.distributed.DistributedSampler` every process does the same, with the batch sizes of one
    process::

        schedule = StepLR(optimizer, step_size=30, gamma=0.2)
        schedule = BatchSizeScheduler(schedule, loader, max_batch_size=4096)
        for epoch in range(90):
            for batch in loader:
                ...
            schedule.step()

    `loader.batch_size` keeps the first value, since a DataLoader does not allow it to be set; read `batch_size` here.
    A parameter group that is added later keeps the learning rate that it is given, with the batch size that there is
    then, and from there on follows the schedule as the others do.

    An epoch is at most one batch: with `drop_last`, a larger batch would be dropped altogether.

    Source: Smith, Kindermans, Ying and Le, https://arxiv.org/abs/1711.00489.

    Args:
        schedule: any schedule of one step per epoch; step it through this object only.
        loader: the DataLoader of the training data, or its BatchSampler.
        max_batch_size: at least the batch size at the start.
        base_momentum: None for batch sizes that do not depend on the momentum; else 0 up to but not including 1.

    Raises:
        TypeError: the loader makes no batches of its own, so that there is no batch size to set.
        ValueError: an argument is out of its range, or no group has a momentum to compare with.
    """

    def __init__(
        self,
        schedule: LRScheduler,
        loader: DataLoader[Any] | BatchSampler,
        *,
        max_batch_size: int,
        base_momentum: float | None = None,
    ) -> None:
        self.batch_sampler = loader if isinstance(loader, BatchSampler) else getattr(loader, "batch_sampler", None)
        if not isinstance(getattr(self.batch_sampler, "batch_size", None), int):
            raise TypeError(
                "the loader has no batch sampler with a batch_size; make it with DataLoader(..., batch_size=n)"
            )
        self.schedule = schedule
        self.optimizer = schedule.optimizer
        self.base_batch_size = self.batch_size
        self.max_batch_size = at_least("max_batch_size", max_batch_size, self.base_batch_size)
        if base_momentum is not None:
            if not 0 <= base_momentum < 1:
                raise ValueError(f"base_momentum must be at least 0 and below 1, not {base_momentum}")
            if all(name not in self.optimizer.param_groups[0] for name in ("momentum", "betas")):
                raise ValueError(f"{type(self.optimizer).__name__} has no momentum; leave base_momentum out")
        self.base_momentum = base_momentum
        self._scheduled = self._lrs()
        self._highest = list(self._scheduled)
        self._apply()

    @property
    def batch_size(self) -> int:
        """The batch size of the loader's next iteration."""
        size: int = self.batch_sampler.batch_size  # type: ignore[union-attr]
        return size

    def step(self, *args: Any) -> None:
        """Takes a step of the schedule, which is given the arguments, and sets batch size and learning rates."""
        self._scheduled, self._highest = self._with_added_groups()
        set_lrs(self.optimizer, [*self._scheduled])  # schedules that go on from the current value need their own
        self.schedule.step(*args)
        self._scheduled = self._lrs()
        self._highest = [max(pair) for pair in zip(self._highest, self._scheduled, strict=True)]
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Returns the learning rates in use, one per group."""
        return self._lrs()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state, the schedule's included; the optimizer and the loader are not part of it."""
        scheduled, highest = self._with_added_groups()
        return {
            "schedule": self.schedule.state_dict(),
            "base_batch_size": self.base_batch_size,
            "max_batch_size": self.max_batch_size,
            "base_momentum": self.base_momentum,
            "scheduled": scheduled,
            "highest": highest,
            "batch_size": self.batch_size,
            "kept": self._kept,
            "lrs": self._lrs(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned, and sets batch size and learning rates accordingly.

        Raises:
            ValueError: the state is of another scheduler or for another number of groups. Nothing has changed then.
        """
        check_state(
            self, state_dict, *(name for name in self.state_dict() if name not in ("batch_size", "kept", "lrs"))
        )
        if len(state_dict["scheduled"]) != (groups := len(self.optimizer.param_groups)):
            raise ValueError(
                f"the state is for {len(state_dict['scheduled'])} parameter group(s), the optimizer has {groups}"
            )
        self.schedule.load_state_dict(state_dict["schedule"])
        self.base_batch_size = state_dict["base_batch_size"]
        self.max_batch_size = state_dict["max_batch_size"]
        self.base_momentum = state_dict["base_momentum"]
        self._scheduled, self._highest = list(state_dict["scheduled"]), list(state_dict["highest"])
        if "lrs" not in state_dict:  # as saved by earlier versions
            self._apply()
            return
        # Not computed anew: that would ask how many samples the epoch has left, and for the momentum, which may or may
        # not have been loaded yet.
        self._decay, self._kept = max(self._decays()), state_dict["kept"]
        self.batch_sampler.batch_size = state_dict["batch_size"]  # type: ignore[union-attr]
        set_lrs(self.optimizer, [*state_dict["lrs"]])

    def _with_added_groups(self) -> tuple[list[float], list[float]]:
        """The scheduled and the highest learning rates; of a new group, those that give it what it holds."""
        scheduled, highest = list(self._scheduled), list(self._highest)
        for group in self.optimizer.param_groups[len(scheduled) :]:
            highest.append(float(group["lr"]) / self._kept if self._kept else float(group["lr"]))
            scheduled.append(highest[-1] * self._decay)
        return scheduled, highest

    def _decays(self) -> list[float]:
        """The decay so far of each group, 1 at its highest."""
        return [lr / high if high else 1.0 for lr, high in zip(self._scheduled, self._highest, strict=True)]

    def _apply(self) -> None:
        decays = self._decays()
        least = max(decays)  # all groups share a batch, which grows with the least decay
        wanted = self.base_batch_size * self._momentum_factor() / least if least else math.inf
        limit = self._limit()
        kept = min(1.0, limit / wanted)
        self._decay, self._kept = least, kept
        self.batch_sampler.batch_size = max(1, round(min(wanted, limit)))  # type: ignore[union-attr]
        rest = [decay / least if least else 1.0 for decay in decays]
        set_lrs(self.optimizer, [high * part * kept for high, part in zip(self._highest, rest, strict=True)])

    def _limit(self) -> int:
        try:
            samples = len(self.batch_sampler.sampler)  # type: ignore
        except (AttributeError, TypeError):  # a sampler without an end, or a batch sampler of the user's own
            return self.max_batch_size
        return min(self.max_batch_size, max(samples, self.base_batch_size))

    def _momentum_factor(self) -> float:
        if self.base_momentum is None:
            return 1.0
        group = self.optimizer.param_groups[0]
        momentum = float(group["momentum"] if "momentum" in group else group["betas"][0])
        if momentum >= 1:
            raise ValueError(f"a momentum of {momentum} has no batch size to go with it; it must be below 1")
        return (1 - self.base_momentum) / (1 - momentum)

    def _lrs(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]
