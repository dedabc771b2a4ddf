"""The mixin that gives an optimizer class its fused step, and hands to torch what the fused path does not take."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fusedopt import _C, sharding
from fusedopt.optim._explanation import Explanation, explain
from fusedopt.optim._scaling import NO_SCALING, Scaling, gradient_scale
from fusedopt.optim._sharded_step import agreed, sharded_step, torch_sharded_step
from fusedopt.optim._shards import Domains, has_shards
from fusedopt.optim._torch import (
    count_on_device,
    new_states,
    refuse_capturable,
    refuse_capture,
    refuse_sparse,
    torch_step,
)

_native: ContextVar[bool] = ContextVar("fusedopt_native", default=os.environ.get("FUSEDOPT_DISABLE") == "1")


@contextmanager
def native() -> Iterator[None]:
    """Runs every step inside the block on torch's own path, for bisecting. `FUSEDOPT_DISABLE=1` does so everywhere."""
    token = _native.set(True)
    try:
        yield
    finally:
        _native.reset(token)


class FusedStep(Optimizer):
    """`step()` as one fused pass over memory.

    A subclass derives from this and from the torch class it replaces, which validates the arguments and makes the
    state. It adds `_numbers`, which turns a group into the number of a rule and the rule's hyper-parameters.
    """

    # On the class, not the instance, so that it survives pickling: GradScaler then leaves unscaling to step().
    _step_supports_amp_scaling = True
    _torch_class: ClassVar[type[Optimizer]]
    _group_options: ClassVar[tuple[str, ...]] = ()  # options beyond torch's that live in the groups
    _clip_epsilon: ClassVar[float] = 1e-6  # torch.nn.utils.clip_grad_norm_'s
    _sum_scope: ClassVar[Literal["tensor", "group"] | None] = None  # over what the rule takes sums in a step

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        raise NotImplementedError

    def _needs_count(self, group: dict[str, Any]) -> bool:
        """Whether the rule's arithmetic depends on how many steps there have been."""
        return True

    def _transfers(self, group: dict[str, Any]) -> int:
        """How often an element is read or written in a step, without clipping."""
        transfers: int = _C.TRANSFERS[self._numbers(group)[0]]
        return transfers

    def _torch_class_of(self, group: dict[str, Any]) -> type[Optimizer]:
        """The class that steps what the fused path does not take of this group."""
        return self._torch_class

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        """What torch says to a sparse gradient in this group, None where it takes one."""
        raise NotImplementedError

    def _options(self, max_grad_norm: float | None, **group_options: Any) -> None:
        """Takes over the options beyond torch's, once torch's constructor has run."""
        if max_grad_norm is not None and not max_grad_norm >= 0:
            raise ValueError(f"Invalid max_grad_norm: {max_grad_norm}; it must be None or at least 0")
        self.defaults |= group_options
        for group in self.param_groups:
            for name, value in group_options.items():
                group.setdefault(name, value)
        self.defaults["max_grad_norm"] = max_grad_norm

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's. `max_grad_norm` is refused: the norm is taken over all groups."""
        if isinstance(param_group, dict):
            _refuse_group_norm(param_group)
        super().add_param_group(param_group)
        self.param_groups[-1].pop("max_grad_norm", None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch keeps only what a loaded group carries. An option of ours that it does not know stays as it is.
        live = self.__dict__.get("param_groups", [])
        defaults = state.get("defaults") or self.defaults
        for i, group in enumerate(state["param_groups"]):
            group.pop("max_grad_norm", None)
            for name in self._group_options:
                group.setdefault(name, live[i][name] if i < len(live) else defaults.get(name))
        # Unpickled keys are equal to torch's, not identical; the walk over the states finds identical ones faster.
        # And a state saved from another memory layout (a model made channels-last since) takes the parameter's.
        for param, values in state["state"].items():
            if isinstance(param, Tensor) and isinstance(values, dict):
                state["state"][param] = {
                    sys.intern(name) if type(name) is str else name: _in_layout_of(param, value)
                    for name, value in values.items()
                }
        super().__setstate__(state)

    @property
    def grad_norm(self) -> Tensor | None:
        """Norm of all gradients in the last step, unscaled and before clipping.

        A scalar on the first parameter's device, None before the first step or without `max_grad_norm`.
        """
        if self._grad_norm is None:
            return None
        first: Tensor = self.param_groups[0]["params"][0]
        dtype = torch.float64 if first.dtype in (torch.float64, torch.complex128) else torch.float32
        if isinstance(self._grad_norm, Tensor):
            return self._grad_norm.to(first.device, dtype, copy=True)
        return torch.tensor(self._grad_norm, dtype=dtype, device=first.device)

    def explain(self) -> list[Explanation]:
        """For every parameter, the path it took in the last step and the reason."""
        reasons = self._reasons or (self._plan.reasons() if self._plan else [])
        return explain(self.param_groups, self._torch_class, reasons)

    def bytes_per_step(self) -> int:
        """Bytes that the last step's fused path has to read and write at least, by the declarations of its rules."""
        if self._plan is None or self._reasons is not None:
            return 0
        reasons, total = iter(self._plan.reasons()), 0
        for group in self.param_groups:
            transfers = self._transfers(group) + (self.defaults["max_grad_norm"] is not None)
            fused = [p for p in group["params"] if next(reasons) is None]
            total += transfers * sum(sharding.local(p).nbytes for p in fused)
        return total

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's, which spends most of its time on telling the profiler: here it is told only when it listens."""
        inherited = super().zero_grad
        if (
            not set_to_none
            or inherited.__func__ is not _torch_zero_grad  # type: ignore[attr-defined]
            or torch.compiler.is_compiling()
            or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
        ):
            inherited(set_to_none)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Performs one step.

        Args:
            closure: optional; re-evaluates the model and returns the loss, with gradients enabled.

        Returns:
            What the closure returned, else None.

        Raises:
            What torch's class raises. Nothing has been changed then.
        """
        if torch.compiler.is_compiling():
            return _uncompiled_step(self, *args, **kwargs)
        # A subclass that overrides step() has been wrapped by torch, and its hooks have run already.
        if type(self).step is FusedStep.step and (
            self.__dict__.get("_optimizer_step_pre_hooks")
            or self.__dict__.get("_optimizer_step_post_hooks")
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
        ):
            return _hooked_step(self, *args, **kwargs)
        return self._step(*args, **kwargs)

    # Tells torch not to wrap step(): the wrapper costs more than a small fused step, hooks or not.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        # Set by GradScaler around the step; None or 0 where there is nothing to unscale or to check.
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        scaling = NO_SCALING if grad_scale is None and found_inf is None else Scaling(grad_scale, found_inf)
        if found_inf is not None and has_shards(self):
            scaling = agreed(self, scaling)
        if not scaling.on_gpu and scaling.overflowed():
            return loss

        numbers, counted = [], []
        everything = "fusedopt.native() or FUSEDOPT_DISABLE=1" if _native.get() else None
        for group in self.param_groups:
            _refuse_group_norm(group)
            if group["differentiable"]:
                everything = everything or "differentiable=True"
            if group["capturable"]:
                refuse_capturable(group)
            numbers.append(self._numbers(group))
            counted.append((group["capturable"] or scaling.on_gpu) and self._needs_count(group))

        if everything:
            if scaling.on_gpu and scaling.overflowed():
                return loss
            params = [p for group in self.param_groups for p in group["params"]]
            self._reasons = ["no gradient" if p.grad is None else everything for p in params]
            leftover = [i for i, p in enumerate(params) if p.grad is not None]
            if has_shards(self):
                torch_sharded_step(self, leftover, scaling)
            else:
                torch_step(self, leftover, gradient_scale(self, [], leftover, scaling)[0], guarded=False)
            return loss

        plan = self._plan
        if plan is None:
            plan = self._plan = _C.Plan()
        self._reasons = None
        found = plan.refresh(self.param_groups, self.state, numbers, counted, False, False)
        refresh = partial(plan.refresh, self.param_groups, self.state, numbers, counted)
        if plan.sharded:
            sharded_step(self, refresh, found, scaling)
            return loss
        leftover, missing, uncounted, _ = found
        devices = plan.devices
        if devices and devices[-1] >= 0 and _C.is_capturing():
            refuse_capture(self)
        on_host = bool(leftover) or not devices or devices[0] < 0  # something is updated where no GPU decides
        if on_host and scaling.on_gpu and scaling.overflowed():
            return loss
        if leftover or missing or uncounted:
            refuse_sparse(self, leftover)
            with new_states(self, missing):
                if missing:
                    leftover, _, uncounted, _ = refresh(True, True)
                if uncounted:
                    count_on_device(self, uncounted, missing)
                    leftover, _, _, _ = refresh(True, True)
                scale, scalings = gradient_scale(self, devices, leftover, scaling)
                if leftover:
                    torch_step(self, leftover, scale, guarded=True)
                    refresh(True, True)
        elif scaling is NO_SCALING and self.defaults["max_grad_norm"] is None:
            plan.run(1.0)
            return loss
        else:
            scale, scalings = gradient_scale(self, devices, leftover, scaling)
        plan.run(scale, scalings, self.defaults["max_grad_norm"] or 0.0, self._clip_epsilon)
        return loss

    # Rebuilt at need: torch drops whatever it does not know when an optimizer is copied or pickled.
    _plan: _C.Plan | None = None
    _reasons: list[str | None] | None = None
    _domains: Domains | None = None
    _grad_norm: float | Tensor | None = None  # where a GPU keeps it, or a number

    def _init_states(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Gives parameters their first state, by torch's own code."""
        init = self._torch_class._init_group  # type: ignore[attr-defined]
        lists = len(inspect.signature(init).parameters) - 2
        init(self, {**group, "params": params}, *([] for _ in range(lists)))


def _in_layout_of(param: Tensor, value: Any) -> Any:
    if not isinstance(value, Tensor) or is_lazy(param) or value.shape != param.shape or value.layout != torch.strided:
        return value
    if sharding.is_dtensor(value) or sharding.is_dtensor(param):
        return value  # whose layout is that of its placement
    return value if value.stride() == param.stride() else torch.empty_like(param, dtype=value.dtype).copy_(value)


def _refuse_group_norm(group: dict[str, Any]) -> None:
    if "max_grad_norm" in group:
        raise ValueError("max_grad_norm belongs to the optimizer, not to a param group: its norm is over all groups")


FusedStep.step.__signature__ = inspect.signature(FusedStep._step)  # type: ignore[attr-defined]
_torch_zero_grad = Optimizer.zero_grad
_hooked_step = Optimizer.profile_hook_step(FusedStep._step)
_uncompiled_step = torch._disable_dynamo(FusedStep.step)  # type: ignore[attr-defined]
