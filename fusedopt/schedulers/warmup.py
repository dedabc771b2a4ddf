"""Warm-up: low learning rates at first, while the moments are young and the data are new to the model."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from fusedopt.schedulers.arguments import at_least, fraction, one_of, start_factor_in_range
from fusedopt.schedulers.closed_form import LR, ClosedFormLR, check_state, set_lrs
from fusedopt.schedulers.decay import DecayShape, remaining

WarmupMode = Literal["linear", "exponential", "constant"]


class WarmupLR(ClosedFormLR):
    """Raises the learning rate to the base, or to where the schedule `after` starts; then follows that.

    `after` may be any schedule, :class:`~torch.optim.lr_scheduler.ReduceLROnPlateau` included. It stays at its start
    during the warm-up, the momentum it cycles with it, and takes its first step after step `warmup_steps`; what
    `step` is given then, such as a metric, goes to it::

        cosine = CosineAnnealingLR(optimizer, T_max=900)
        schedule = WarmupLR(optimizer, warmup_steps=100, after=cosine)  # and step `schedule` only

    Args:
        optimizer: whose learning rates to set.
        warmup_steps: the step at which the full learning rate is reached, at least 0.
        mode: "linear"; "exponential", by the same factor in each step; "constant", start_factor until the end.
        start_factor: of the full learning rate, above 0 and at most 1: the first step's.
        after: a schedule of the same optimizer, made before.
        last_epoch: as in :class:`ClosedFormLR`; with `after`, resume with `load_state_dict` instead.

    Raises:
        ValueError: an argument is out of its range, or `after` belongs to another optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        mode: WarmupMode = "linear",
        start_factor: float = 0.1,
        after: LRScheduler | None = None,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_steps = at_least("warmup_steps", warmup_steps, 0)
        self.mode = one_of("mode", mode, get_args(WarmupMode))
        self.start_factor = start_factor_in_range(start_factor)
        if after is not None and after.optimizer is not optimizer:
            raise ValueError("`after` sets the learning rates of another optimizer; make both for the same one")
        if after is not None and last_epoch != -1:
            raise ValueError("with `after`, last_epoch must be -1; resume with load_state_dict")
        self.after = after
        super().__init__(optimizer, last_epoch)

    def _initial_step(self) -> None:
        if self.after is not None:
            self.base_lrs = list(self.after.get_last_lr())
            set_lrs(self.optimizer, self.base_lrs)  # SequentialLR has set them to `initial_lr`
        super()._initial_step()

    @override
    def formula(self, base: LR, step: int) -> LR:
        if step >= self.warmup_steps:
            return base
        done = step / self.warmup_steps
        return base * warmup_factor(self.mode, self.start_factor, done)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Takes a step of the warm-up, or with the same arguments one of `after`."""
        if self.after is None:
            super().step(*args, **kwargs)
        elif self.last_epoch < self.warmup_steps:
            super().step()
        else:
            self.last_epoch += 1
            self.after.step(*args, **kwargs)
            self._last_lr = self.after.get_last_lr()

    def lrs_at(self, step: int) -> list[LR]:
        """As in :class:`ClosedFormLR`; with `after`, up to the end of the warm-up.

        Raises:
            ValueError: the step is one of `after`'s; `simulate` takes any.
        """
        if self.after is not None and step > self.warmup_steps:
            raise ValueError(
                f"after step {self.warmup_steps} the schedule is {type(self.after).__name__}; use simulate"
            )
        return super().lrs_at(step)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything but the optimizer, with the state of `after`."""
        return {**super().state_dict(), "after": None if self.after is None else self.after.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in :class:`ClosedFormLR`; the state must be with `after` if and only if this warm-up is."""
        check_state(self, state_dict, "after")
        after, state = self.after, state_dict["after"]
        if (after is None) != (state is None):
            raise ValueError(f"this state is {'without' if state is None else 'with'} a schedule `after` the warm-up")
        super().load_state_dict({**state_dict, "after": after})
        if after is not None:
            after.load_state_dict(state)


class WarmupStableDecayLR(ClosedFormLR):
    """Linear warm-up from start_factor * base, then base, then a decay to final_factor * base, which then stays.

    Source: "MiniCPM", https://arxiv.org/abs/2404.06395; the shape 1 - sqrt(x) from Hägele et al., "Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations", https://arxiv.org/abs/2405.18392.

    Args:
        optimizer: whose learning rates to set.
        warmup_steps, stable_steps, decay_steps: at least 0 each; the base is reached at step `warmup_steps`, the end of
            the decay at step `warmup_steps + stable_steps + decay_steps`.
        shape: with x from 0 to 1 during the decay: "linear" 1 - x, "cosine" (1 + cos(pi x)) / 2, "1-sqrt" 1 - sqrt(x).
        start_factor: of the base, above 0 and at most 1.
        final_factor: of the base, 0 to 1.
        last_epoch: as in :class:`ClosedFormLR`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        stable_steps: int,
        decay_steps: int,
        shape: DecayShape = "1-sqrt",
        start_factor: float = 0.1,
        final_factor: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_steps = at_least("warmup_steps", warmup_steps, 0)
        self.stable_steps = at_least("stable_steps", stable_steps, 0)
        self.decay_steps = at_least("decay_steps", decay_steps, 0)
        self.shape = one_of("shape", shape, get_args(DecayShape))
        self.start_factor = start_factor_in_range(start_factor)
        self.final_factor = fraction("final_factor", final_factor)
        super().__init__(optimizer, last_epoch)

    @override
    def formula(self, base: LR, step: int) -> LR:
        if step < self.warmup_steps:
            return base * warmup_factor("linear", self.start_factor, step / self.warmup_steps)
        decayed = step - self.warmup_steps - self.stable_steps
        if decayed < 0:
            return base
        x = decayed / self.decay_steps if decayed < self.decay_steps else 1.0
        return base * (self.final_factor + (1 - self.final_factor) * remaining(self.shape, x))


def warmup_factor(mode: WarmupMode, start: float, done: float) -> float:
    """The factor of the target at a point `done` of the warm-up, 0 up to but not including 1."""
    if mode == "linear":
        return start + (1 - start) * done
    return start ** (1 - done) if mode == "exponential" else start
