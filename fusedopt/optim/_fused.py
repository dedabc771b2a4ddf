"""The mixin that gives an optimizer class its fused step, and falls back to torch for what that does not support."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.optim.optimizer import Optimizer, _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from fusedopt._extension import _C
from fusedopt.optim._averaged import averaged_weights
from fusedopt.optim._explanation import explain
from fusedopt.optim._formats import memory
from fusedopt.optim._options import Options
from fusedopt.optim._partition import is_partition, refuse_partition
from fusedopt.optim._scaling import NO_SCALING, Scaling, gradient_scale
from fusedopt.optim._sharded_step import Found, agreed, sharded_step, torch_sharded_step
from fusedopt.optim._shards import has_shards, params_of
from fusedopt.optim._torch import (
    look_again,
    new_states,
    refuse_capturable,
    refuse_capture,
    refuse_sparse,
    torch_step,
)
from fusedopt.optim._undo import states_restored_on_error

_BLIND: set[type] = {DeviceContext}  # function modes that need not see a step: it says where tensors are made
_REASONS = _C.REASONS
_native: ContextVar[bool] = ContextVar("fusedopt_native", default=os.environ.get("FUSEDOPT_DISABLE") == "1")


@contextmanager
def native() -> Iterator[None]:
    """Runs each step in the block by torch's implementation, for bisecting; `FUSEDOPT_DISABLE=1` does so everywhere."""
    before = _native.get()
    try:
        _native.set(True)
        yield
    finally:
        _native.set(before)


class FusedStep(Options):
    """`step()` as one fused pass over memory.

    A subclass derives from this and from the torch class it replaces, which validates the arguments and makes the
    state, and says which rule is its own (:class:`Base`).
    """

    explain = explain

    def bytes_per_step(self) -> int:
        """The least number of bytes that the last step's fused path has to read and write, as its rules declare it.

        Raises:
            RuntimeError: a group was removed since.
        """
        if self._plan is None or self._reasons is not None:
            return 0
        late = [self._is_late(group) for group in self.param_groups]
        try:
            return self._plan.bytes_per_step(self.defaults["max_grad_norm"] is not None, late)
        except IndexError:
            raise RuntimeError("a group was removed since the last step: step first, then ask for its bytes") from None

    memory = memory
    averaged_weights = averaged_weights

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's, but records itself for the profiler only while one runs: recording takes most of torch's time."""
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
            Exception: what torch's class raises. Nothing has been changed then.
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

        turn = self._turn
        if turn is None:
            turn = self.__dict__.setdefault("_turn", threading.RLock())
        with turn:  # another thread's step comes to its end first
            if self._stepping:
                raise RuntimeError("step() was called from within the same optimizer's step(), which is not over yet")
            if self._averaged:
                raise RuntimeError("step() was called within averaged_weights(): the parameters are not their own now")
            self._stepping = True
            try:
                self._advance()
            finally:
                self._stepping = False
        return loss

    def _advance(self) -> None:
        # Set by GradScaler around the step; None or 0 where there is nothing to unscale or to check.
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        scaling = NO_SCALING if grad_scale is None and found_inf is None else Scaling(grad_scale, found_inf)
        if not scaling.on_gpu and scaling.overflowed():
            if has_shards(self):
                agreed(self, scaling)  # the other processes have to learn of it
            return

        numbers, counted, graphs = [], [], False
        everything = _REASONS["Native"] if _native.get() else _observer()
        for group in self.param_groups:
            self._check_group(group)
            if is_partition(group["params"], self._made_of):
                refuse_partition(self, group)
            if group["differentiable"]:
                everything = everything or _REASONS["Differentiable"]
            capturable = group.get("capturable", False)
            graphs = graphs or capturable
            if everything is None:
                numbers.append(self._numbers(group))
                counted.append((capturable or scaling.on_gpu) and self._needs_count(group))

        spread = self._spread
        apart = spread is not None and (
            self._sum_scope == "group" or (spread.pieces and any(map(self._sums_tensors, self.param_groups)))
        )
        if apart:  # every process has to take part in every sum
            everything = everything or _REASONS["Spread"]
        if everything:
            self._advance_by_torch(everything, scaling, apart)
            return

        plan = self._plan
        if plan is None:
            plan = self._plan = _C.Plan()
        self._reasons = None
        refresh = partial(plan.refresh, self.param_groups, self.state, numbers, counted)
        # What needs nothing more than the fused path is over in one call, before another thread can touch a gradient.
        at_once = scaling is NO_SCALING and self.defaults["max_grad_norm"] is None and not graphs
        done = False
        try:
            found = refresh(False, False, at_once)
            done = found is None
            if found is not None:
                self._advance_the_rest(plan, refresh, found, scaling)
        finally:
            if not done:  # a refused step must not keep gradients alive until the next one
                plan.release()

    def _advance_the_rest(self, plan: _C.Plan, refresh: Callable[..., Found], found: Found, scaling: Scaling) -> None:
        """Performs what is more than one call: new states, sums, scaling, shards, and what torch's class has to do."""
        if plan.sharded:
            scaling = agreed(self, scaling)
            if scaling.on_gpu or not scaling.overflowed():
                sharded_step(self, refresh, found, scaling)
            return
        leftover, missing, uncounted, _ = found
        devices = plan.devices
        if devices and devices[-1] >= 0 and _C.is_capturing():
            refuse_capture(self)
        on_host = bool(leftover) or not devices or devices[0] < 0  # something is updated where no GPU decides
        if on_host:
            refuse_capturable(self)
        if on_host and scaling.on_gpu and scaling.overflowed():
            return
        if leftover or missing or uncounted:
            refuse_sparse(self, leftover)
            with new_states(self, missing):
                leftover = look_again(self, refresh, leftover, missing, uncounted)
                scale, scalings = gradient_scale(self, devices, leftover, scaling)
                if leftover:
                    torch_step(self, leftover, scale, guarded=True)
                    refresh(True, True, done=leftover)
        else:
            scale, scalings = gradient_scale(self, devices, leftover, scaling)
        plan.run(scale, scalings, self.defaults["max_grad_norm"] or 0.0, self._clip_epsilon)

    def _advance_by_torch(self, reason: str, scaling: Scaling, apart: bool) -> None:
        """Steps everything on torch's path; with `apart`, every process takes part, whatever gradients it has."""
        refuse_capturable(self)
        sharded = has_shards(self)
        scaling = agreed(self, scaling) if sharded else scaling
        if (sharded or scaling.on_gpu) and scaling.overflowed():
            return
        params = params_of(self)
        self._reasons = [_REASONS["NoGradient"] if p.grad is None else reason for p in params]
        leftover = [i for i, p in enumerate(params) if apart or p.grad is not None]
        refuse_sparse(self, leftover)
        with states_restored_on_error(self, [params[i] for i in leftover]):
            if sharded:
                torch_sharded_step(self, leftover, scaling)
                return
            scale, _ = gradient_scale(self, [], leftover, scaling)
            seen = any(group["differentiable"] for group in self.param_groups)  # by autograd, values put back too
            torch_step(self, leftover, scale, guarded=not seen, every_group=apart)

    _turn: threading.RLock | None = None  # whose it is to step; of each copy its own


def _observer() -> str | None:
    """Why the operations of this step have to pass torch's dispatcher one by one, None where nothing asks for it."""
    if forward_ad._current_level >= 0:
        return _REASONS["ForwardMode"]
    reason = _C.observer()
    if reason == _REASONS["FunctionMode"]:
        modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        if all(type(mode) in _BLIND for mode in modes):
            return None
    return reason


FusedStep.step.__signature__ = inspect.signature(FusedStep._step)  # type: ignore[attr-defined]
_torch_zero_grad = Optimizer.zero_grad
_hooked_step = Optimizer.profile_hook_step(FusedStep._step)
_uncompiled_step = torch._disable_dynamo(FusedStep.step)  # type: ignore[attr-defined]
