"""The base of the schedules: a formula of the step, that multiplies with what other schedulers do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

LR = float | Tensor


class ClosedFormLR(LRScheduler):
    """A schedule whose learning rate is a formula of the group's base learning rate and the number of steps.

    Alone, it sets exactly the value of the formula in float64, after however many steps: nothing is accumulated. A
    tensor learning rate is filled in place with the value rounded to its dtype, without a host synchronisation.

    A learning rate that has been changed since the last step, by another scheduler of a
    :class:`~torch.optim.lr_scheduler.ChainedScheduler` or by hand, keeps that factor, as with torch's own chainable
    schedules. A schedule that has reached 0 has forgotten it.

    A parameter group that is added later goes on from its own learning rate: at each step it changes by the factor by
    which the formula does for a group with that base, as a learning rate that was changed by hand, and as with torch's
    own chainable schedules. So what it is given is its learning rate at that point of the schedule, not its base at the
    beginning; from a schedule that has reached 0 it gets 0.

    `load_state_dict` puts the learning rates back as well, so that it does not matter whether the optimizer's state is
    loaded before or after.

    A schedule of your own is a subclass that writes `formula`.

    Args:
        optimizer: its groups' `initial_lr`, or `lr` where no scheduler has set that, are the base learning rates.
        last_epoch: number of the last step taken, -1 for none; with another value the groups must hold `initial_lr`.
    """

    def formula(self, base: LR, step: int) -> LR:
        """The learning rate after `step` steps, for a base learning rate; float64 in, float64 out."""
        raise NotImplementedError

    def _formulas(self, bases: Sequence[LR], step: int) -> list[LR]:
        """`formula` of each group."""
        return [self.formula(base, step) for base in bases]

    def lrs_at(self, step: int) -> list[LR]:
        """Returns what the schedule alone gives after `step` steps (from 0), one learning rate per group.

        Neither the schedule nor the optimizer is changed. Where the base learning rate is a tensor, so is the result.
        """
        bases = [*self.base_lrs, *(_base(group) for group in self._added())]
        values = self._formulas([_exact(base) for base in bases], step)
        return [_rounded(value, base) for value, base in zip(values, bases, strict=True)]

    def _added(self) -> list[dict[str, Any]]:
        """The groups that have been added to the optimizer since the last step."""
        return self.optimizer.param_groups[len(self.base_lrs) :]

    def _take_in(self) -> None:
        """Makes the learning rates of added groups their bases."""
        for group in self._added():
            self.base_lrs.append(_copied(group.setdefault("initial_lr", _base(group))))

    def get_lr(self) -> list[LR]:
        """The learning rates of the step that is being taken; to read the current ones, see `get_last_lr`."""
        self._take_in()
        lrs = self.lrs_at(self.last_epoch)
        if self.last_epoch == 0:
            before = self.base_lrs
        elif self._step_count == 1:  # constructed with last_epoch: the groups may hold anything
            return lrs
        else:
            before = self.lrs_at(self.last_epoch - 1)
        groups = self.optimizer.param_groups
        return [_chained(lr, old, group["lr"]) for lr, old, group in zip(lrs, before, groups, strict=True)]

    def _get_closed_form_lr(self) -> list[LR]:
        # torch's name: SequentialLR calls it to start a schedule anew, regardless of what went before.
        self._take_in()
        return self.lrs_at(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything but the optimizer, and the groups' learning rates as `lrs`."""
        # Copies, since later steps fill these tensors; all others are made anew at each step.
        lrs = [_copied(group["lr"]) for group in self.optimizer.param_groups]
        return {**super().state_dict(), "lrs": lrs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned, and sets the groups' learning rates.

        Raises:
            ValueError: the state is for another number of groups, or of another scheduler. Nothing has changed then.
        """
        check_state(self, state_dict, *(name for name in self.state_dict() if not name.startswith("_")))
        groups = self.optimizer.param_groups
        if len(state_dict["lrs"]) != len(groups):
            raise ValueError(
                f"the state of {type(self).__name__} is for {len(state_dict['lrs'])} parameter group(s), "
                f"the optimizer has {len(groups)}; load it with an optimizer that is made as the saved one was"
            )
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "lrs"})
        set_lrs(self.optimizer, state_dict["lrs"])


def set_lrs(optimizer: Optimizer, lrs: list[LR]) -> None:
    """Sets each group's learning rate; one that is a tensor stays that tensor and is filled."""
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr.squeeze() if isinstance(lr, Tensor) else lr)
        else:
            group["lr"] = _copied(lr)


def check_state(scheduler: Any, state_dict: dict[str, Any], *names: str) -> None:
    """Raises ValueError where a state lacks what the scheduler's own state has."""
    missing = [name for name in names if name not in state_dict]
    if missing:
        raise ValueError(
            f"this is not a state of {type(scheduler).__name__}: {', '.join(missing)} missing; "
            "pass what its state_dict() returned"
        )


def _copied(lr: LR) -> LR:
    return lr.clone() if isinstance(lr, Tensor) else lr


def _base(group: dict[str, Any]) -> LR:
    base: LR = group.get("initial_lr", group["lr"])
    return _copied(base)


def _exact(lr: LR) -> LR:
    return lr.double() if isinstance(lr, Tensor) else lr


def _rounded(value: LR, lr: LR) -> LR:
    """`value`, as a tensor of the dtype and on the device of `lr` where that is one."""
    if not isinstance(lr, Tensor):
        return value
    # full_like takes a float without a copy from the host to the device, which would synchronise.
    return value.to(lr) if isinstance(value, Tensor) else torch.full_like(lr, value)


def _chained(new: LR, old: LR, lr: LR) -> LR:
    """`new` times what others have made of `old`: exactly `new` where they left it as it was."""
    if not isinstance(lr, Tensor) and not isinstance(old, Tensor):
        return new * (lr / old) if old else new
    old = _rounded(old, lr)
    factor = torch.where(torch.as_tensor(old == 0), 1.0, _exact(lr) / _exact(old))
    return _rounded(_exact(new) * factor, lr if isinstance(lr, Tensor) else old)
