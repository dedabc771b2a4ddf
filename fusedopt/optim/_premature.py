"""When a step in the backward pass would come too early, or see too little: the reasons to refuse it."""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import _engine_run_backward
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import Optimizer

from fusedopt.optim._fused import FusedStep
from fusedopt.optim._processes import is_flattened
from fusedopt.optim._shards import has_shards, params_of

_T = TypeVar("_T")
_PASS, _NODE = _engine_run_backward.__code__, BackwardCFunction.apply.__code__
# Of torch's own classes, those that step each parameter by itself. What others do in step() nobody can know.
_TORCHS = {
    cls
    for name in torch.optim.__all__
    if isinstance(cls := getattr(torch.optim, name), type) and issubclass(cls, Optimizer)
} - {Optimizer, torch.optim.LBFGS}

_FLAT = "FullyShardedDataParallel reduces these gradients after they are complete on a process: use fully_shard (FSDP2)"
_PARALLEL = (
    "DistributedDataParallel averages gradients only after they are complete on a process: use fully_shard (FSDP2), or "
    "ordinary steps"
)
_SCALED = (
    "a GradScaler has left its scale on it, whose gradients are still scaled in the backward pass: train in bfloat16, "
    "or call remove() on the handle"
)


def refusal(optimizer: Optimizer) -> str | None:
    """Why an optimizer cannot step in the backward pass, None where it can."""
    fused = isinstance(optimizer, FusedStep) and type(optimizer).step is FusedStep.step
    if not fused and type(optimizer) not in _TORCHS:
        return "its class has a step() of its own, which may need all gradients"
    if optimizer.__dict__.get("_in_backward") is not None:
        return "it does already; call remove() on the handle first"
    if isinstance(optimizer, FusedStep):
        if optimizer._sum_scope == "group":
            return "it decides over all gradients of a group"
        if optimizer._spread is not None:
            return "its gradients are spread over processes, and its norms go over all of them"
        if optimizer._sum_scope == "tensor" and has_shards(optimizer):
            return "its norms go over the processes that have shards, which may come to a parameter at different times"
    params = set(params_of(optimizer))
    wrappers = _alive(DistributedDataParallel) if dist.is_available() and dist.is_initialized() else []
    if any(params & _reduced(wrapper.module) for wrapper in wrappers):
        return _PARALLEL
    return changeable_refusal(optimizer, optimizer.param_groups, params)


def changeable_refusal(optimizer: Optimizer, groups: list[dict[str, Any]], params: Iterable[Tensor]) -> str | None:
    """As `refusal`, of what may change while the optimizer lives, and for these groups and parameters alone."""
    if any(map(_is_flat, params)):
        return _FLAT
    if optimizer.defaults.get("max_grad_norm") is not None:
        return "max_grad_norm needs the norm of all gradients: give max_grad_norm=None"
    if any(group.get("differentiable") for group in groups):
        return "differentiable=True is for steps that autograd sees"
    if _is_scaled(optimizer):
        return _SCALED
    if any(hook is not before_step for hook in optimizer._optimizer_step_pre_hooks.values()):
        return "it has step pre-hooks (GradientNoise?), which would find no gradients: remove them"
    return None


def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Looks at what `optimizer.step()` is called with."""
    steps = optimizer.__dict__.get("_in_backward")
    if steps is None:
        return
    if _is_scaled(optimizer):
        raise RuntimeError(f"{type(optimizer).__name__} steps in the backward pass, and {_SCALED}")
    steps._attach(optimizer)


def refuse_parallel(params: set[Tensor], module: nn.Module, child: nn.Module | None) -> None:
    """Raises where one of these parameters, stepped in the backward pass, is given to DistributedDataParallel."""
    if isinstance(module, DistributedDataParallel) and child is not None and params & _reduced(child):
        raise ValueError(f"its parameters are stepped in the backward pass, and {_PARALLEL}")


def _reduced(module: nn.Module) -> set[Tensor]:
    """The parameters of a module that DistributedDataParallel takes care of."""
    ignored = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    return {p for name, p in module.named_parameters() if name not in ignored}


def _is_scaled(optimizer: Optimizer) -> bool:
    return any(getattr(optimizer, name, None) is not None for name in ("grad_scale", "found_inf"))


# Those of this process by their ids, from the first handle on.
_scalers: weakref.WeakValueDictionary[int, torch.amp.GradScaler] | None = None


def watch_scalers() -> None:
    """Finds the GradScalers that there are, and has each one tell of itself that is made or unpickled from now on.

    Nothing leads to them from a loss, and to look among all objects takes too long for each backward pass.
    """
    global _scalers
    if _scalers is not None:
        return
    known = _scalers = weakref.WeakValueDictionary()

    def telling(method: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(method)
        def told(self: torch.amp.GradScaler, *args: Any, **kwargs: Any) -> None:
            known[id(self)] = self
            method(self, *args, **kwargs)

        return told

    for name in ("__init__", "__setstate__"):
        setattr(torch.amp.GradScaler, name, telling(getattr(torch.amp.GradScaler, name)))
    for scaler in _alive(torch.amp.GradScaler):
        known[id(scaler)] = scaler


def scaler_in_use() -> bool:
    """Whether a GradScaler of this process has scaled a loss. A scaled gradient looks like any other."""
    if not _any_has_scaled():
        return False
    gc.collect()  # some may only wait for that
    return _any_has_scaled()


def _any_has_scaled() -> bool:
    references = () if _scalers is None else _scalers.valuerefs()
    scalers = [scaler for reference in references if (scaler := reference()) is not None]
    return any(scaler.__dict__.get("_enabled") and scaler.__dict__.get("_scale") is not None for scaler in scalers)


def _is_flat(param: Tensor) -> bool:
    return is_flattened(param) or bool(getattr(param, "_is_flat_param", False))


def _alive(cls: type[_T]) -> list[_T]:
    """The instances of a class in this process: nothing leads to them from a parameter or a loss."""
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), cls)]
    if found:
        gc.collect()  # some may only wait for that
        found = [thing for thing in gc.get_objects() if issubclass(type(thing), cls)]
    return found


def is_nested() -> bool:
    """Whether this runs in a backward pass that was begun by a node of another one."""
    frame, within = sys._getframe(), False
    while frame is not None:
        within = within or frame.f_code is _PASS
        if within and frame.f_code is _NODE:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
