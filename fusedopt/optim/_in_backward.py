"""Steps within the backward pass: each parameter as soon as its gradient is complete, which is freed then."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from fusedopt._extension import _C
from fusedopt.optim._fused import FusedStep
from fusedopt.optim._hooks import Hook, can_require_grad, hooks_of, unhook
from fusedopt.optim._premature import (
    before_step,
    changeable_refusal,
    is_nested,
    refusal,
    refuse_parallel,
    scaler_in_use,
    watch_scalers,
)
from fusedopt.optim._shards import params_of
from fusedopt.optim._torch import step_twin


def step_in_backward(optimizer: Optimizer) -> StepsInBackward:
    """Makes `backward()` step each parameter as soon as its gradient is complete, and free the gradient.

    So only a few gradients are in memory at a time. The loop stays the same: `optimizer.step()` steps what is left (a
    gradient that was set by hand, a parameter that was added since), usually nothing. Each
    `backward()` is a step; to accumulate over several, run all but the last within `accumulating()`::

        steps = fusedopt.step_in_backward(optimizer)
        for inputs, labels in loader:
            optimizer.zero_grad()
            criterion(model(inputs), labels).backward()  # steps
            optimizer.step()
            scheduler.step()

    The results are those of ordinary steps, bit for bit, with one class and the same gradients. Groups and `state` are
    the optimizer's: schedulers work as usual, and its `state_dict` may be saved and loaded with steps in the backward
    pass or without. A parameter that is used several times is stepped once. `backward(create_graph=True)`, whose
    gradients are to be differentiated again, leaves them to the next `backward()` or `step()`.

    Code that reads or changes gradients between `backward()` and `step()`, such as clipping or all-reducing by hand,
    finds none. Keep the optimizer alive as long as you train.

    Args:
        optimizer: any of fusedopt's, or of torch.optim's except LBFGS.

    Returns:
        A handle with `remove()`, after which steps are ordinary again; as a context manager, it removes itself.

    Raises:
        ValueError: where a step needs more than one gradient, or the gradient is not yet what is stepped by: with
            `max_grad_norm`, for SWATS, with `differentiable=True`, step pre-hooks (as :class:`fusedopt.GradientNoise`),
            a `norm_group`, LAMB on DTensors, DistributedDataParallel, FullyShardedDataParallel (FSDP1); for a class
            with a `step()` of its own; for a parameter that another optimizer steps in the backward pass, or that is
            listed twice. `fully_shard` (FSDP2) works: it calls the hooks when gradients are reduced. Wrapping a model
            whose parameters are stepped so in DistributedDataParallel raises there.

    Later, `backward()` raises a RuntimeError where that has come to be since, where a :class:`torch.amp.GradScaler` is
    in use in the process, and in a backward pass within another (:func:`torch.utils.checkpoint.checkpoint` with
    ``use_reentrant=True``). Parameters whose turn came before have been stepped then. `optimizer.step()` raises one
    where a `GradScaler` has left its scale on the optimizer.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"step_in_backward takes an optimizer, not {type(optimizer).__name__}")
    if reason := refusal(optimizer):
        raise ValueError(f"{type(optimizer).__name__} cannot step in the backward pass: {reason}")
    return StepsInBackward(optimizer)


def refuse_in_backward(optimizer: Optimizer, who: str) -> None:
    """Raises where an optimizer steps in the backward pass, and `who` has to see its gradients afterwards.

    Raises:
        ValueError: with what to do.
    """
    if getattr(optimizer, "_in_backward", None) is not None:
        raise ValueError(
            f"{who} needs the gradients after backward(): call remove() on step_in_backward's handle first"
        )


class StepsInBackward:
    """What `step_in_backward` returns."""

    def __init__(self, optimizer: Optimizer) -> None:
        # The optimizer has the handle, and parameters have neither: a hook that held them would keep all for ever.
        ours = weakref.ref(self)
        self._optimizer = weakref.ref(optimizer, lambda _: _let_go(ours()))
        self._last: dict[Tensor, _Last] = {}
        # Of each parameter, by id: its group, and where in the group. Who looks there sees whether it is the one.
        self._places: dict[int, tuple[int, int]] = {}
        self._accumulating = 0
        self._hook = Hook(self)
        self._hooked: dict[Tensor, RemovableHandle] = {}
        self._handles: list[RemovableHandle] = []
        watch_scalers()
        try:
            self._attach(optimizer)
            self._handles.append(optimizer.register_step_pre_hook(before_step))
            of_modules = register_module_module_registration_hook(
                lambda module, _, child: refuse_parallel(_params_of(ours()), module, child)
            )
            self._handles.append(of_modules)
            weakref.finalize(self, of_modules.remove)
            optimizer.__dict__["_in_backward"] = self
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> StepsInBackward:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Goes back to ordinary steps. Gradients that have not been stepped stay for the next of them."""
        optimizer = self._optimizer()
        if optimizer is not None and optimizer.__dict__.get("_in_backward") is self:
            del optimizer.__dict__["_in_backward"]
        for handle in (*self._handles, *self._hooked.values()):
            handle.remove()
        self._hooked.clear()
        self._last.clear()

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Within the block `backward()` adds to gradients, as ever, and steps nothing."""
        self._accumulating += 1
        try:
            yield
        finally:
            self._accumulating -= 1

    def reason(self, param: Tensor, otherwise: str) -> str | None:
        """What `Plan.reasons` says of the last step that a parameter took in a backward pass, if there was one."""
        last = self._last.get(param)
        if last is None:
            return otherwise
        return (last.reasons or last.plan.reasons())[0]  # type: ignore[union-attr]

    def _is_over(self) -> bool:
        return self._optimizer() is None

    def _attach(self, optimizer: Optimizer) -> None:
        """Hooks the parameters that have no hook yet, and lets go of those that are listed no more."""
        listed = dict.fromkeys(params := params_of(optimizer))
        if len(listed) < len(params):
            raise ValueError(
                "a parameter is listed twice, and would be stepped once in the backward pass: list it once"
            )
        without = [p for p in listed if p not in self._hooked]
        params = [p for p in without if can_require_grad(p)]
        for p in params:
            unhook(p, Hook.is_idle)
            if any(isinstance(hook, Hook) for hook in hooks_of(p).values()):
                raise ValueError(
                    "another optimizer steps one of these parameters in the backward pass: call remove() on the handle "
                    "that step_in_backward returned for it"
                )
        for p in params:
            needed = p.requires_grad
            try:
                p.requires_grad_(True)  # without it no hook is taken, and it may be set later
                self._hooked[p] = p.register_post_accumulate_grad_hook(self._hook)  # type: ignore[no-untyped-call]
            finally:
                p.requires_grad_(needed)
        if len(self._hooked) > len(listed) - len(without) + len(params):
            for p in self._hooked.keys() - listed.keys():
                self._hooked.pop(p).remove()
                self._last.pop(p, None)

    def _step(self, p: Tensor) -> None:
        """Steps a parameter whose gradient is complete. Runs on whichever thread autograd has for its device."""
        optimizer = self._optimizer()
        if optimizer is None:
            self._hook.warn(p)
            return
        # Under create_graph=True operations are recorded here: a second pass may need the parameter as it is.
        if self._accumulating or torch.is_grad_enabled():
            return
        with optimizer.__dict__.setdefault("_turn", threading.RLock()):  # that of all its steps
            group = self._group_of(optimizer, p)
            if group is None or p.grad is None:
                return
            if reason := self._refusal(optimizer, group, p):
                raise RuntimeError(f"{type(optimizer).__name__} cannot step in the backward pass: {reason}")
            alone = {**group, "params": [p]}
            if isinstance(optimizer, FusedStep):
                self._step_fused(optimizer, p, alone)
            else:
                step_twin(optimizer, type(optimizer), [alone])
            p.grad = None
            optimizer._opt_called = True  # type: ignore[attr-defined]  # a scheduler asks whether there was a step

    def _step_fused(self, optimizer: FusedStep, p: Tensor, group: dict[str, Any]) -> None:
        """Steps as an optimizer of one parameter does, which has its own plan, and all else from the real one."""
        last = self._last.get(p)
        twin = type(optimizer).__new__(type(optimizer))
        twin.__dict__.update(optimizer.__dict__)
        for name in ("_in_backward", "step", "_indices"):  # the optimizer's own; a scheduler wraps step()
            twin.__dict__.pop(name, None)
        twin.param_groups = [group]
        twin._plan = None if last is None else last.plan
        twin._domains = None
        i, j = self._places.get(id(p), (0, 0))
        twin._first = sum(len(other["params"]) for other in optimizer.param_groups[:i]) + j
        twin._step()
        self._last[p] = _Last(twin._plan, twin._reasons)  # and no more of the twin, which has all states

    def _group_of(self, optimizer: Optimizer, p: Tensor) -> dict[str, Any] | None:
        """The group that has the parameter now: `load_state_dict` makes new groups, and callers may move parameters."""
        groups = optimizer.param_groups
        for _ in range(2):
            i, j = self._places.get(id(p), (0, 0))
            if i < len(groups) and j < len(groups[i]["params"]) and groups[i]["params"][j] is p:
                return groups[i]
            self._places = {id(q): (i, j) for i, group in enumerate(groups) for j, q in enumerate(group["params"])}
        return None

    def _refusal(self, optimizer: Optimizer, group: dict[str, Any], p: Tensor) -> str | None:
        """What has come since the handle was made that forbids the step."""
        if scaler_in_use():
            return (
                "a GradScaler of this process has scaled a loss, so gradients may be scaled, and may overflow: "
                "train in bfloat16, or call remove() and step when it has unscaled; delete a scaler that is out of use"
            )
        if is_nested():
            return (
                "in a backward pass within another (checkpoint with use_reentrant=True?) a gradient may not be "
                "complete yet: use use_reentrant=False"
            )
        return changeable_refusal(optimizer, [group], [p])


class _Last(NamedTuple):
    """What is kept of the last step of a parameter."""

    plan: _C.Plan | None
    reasons: list[str | None] | None


def _params_of(steps: StepsInBackward | None) -> set[Tensor]:
    return set() if steps is None else set(steps._hooked)


def _let_go(steps: StepsInBackward | None) -> None:
    """Has a handle whose optimizer is gone keep no parameter, and still be able to remove its hooks."""
    if steps is not None:
        steps._handles += steps._hooked.values()
        steps._hooked.clear()
        steps._last.clear()
