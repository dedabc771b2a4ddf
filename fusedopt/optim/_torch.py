"""torch's implementation, for what the fused path does not support, with torch's result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, _get_capturable_supported_devices

from fusedopt._extension import _C
from fusedopt.optim._base import Base
from fusedopt.optim._codecs import decoded, encoded, is_coded
from fusedopt.optim._formats import SCALARS, check_formats, complete
from fusedopt.optim._in_float32 import in_float32, in_turns, steps_as_it_is
from fusedopt.optim._plain import number
from fusedopt.optim._undo import Selected, restored_if_refused, states_restored_on_error
from fusedopt.sharding import is_dtensor, local


def in_layout_of(param: Tensor, value: Any) -> Any:
    """A state, in the memory layout of its parameter where it is a tensor of the same shape."""
    if is_coded(value) and value[0].shape == param.shape and value[0].stride() != param.stride():
        return encoded(in_layout_of(param, decoded(value)), signed=value[0].dtype == torch.int8)
    if not isinstance(value, Tensor) or is_lazy(param) or value.shape != param.shape or value.layout != torch.strided:
        return value
    if is_dtensor(value) or is_dtensor(param):
        return value  # whose layout is that of its placement
    return value if value.stride() == param.stride() else torch.empty_like(param, dtype=value.dtype).copy_(value)


def select(optimizer: Optimizer, indices: list[int], every_group: bool = False) -> Selected:
    """The groups with those of their parameters whose flat index is among `indices`; without any, only on request."""
    if not indices and not every_group:  # as in almost every step, which must not look at each parameter here
        return []
    wanted, first = set(indices), 0
    selected: Selected = []
    for group in optimizer.param_groups:
        params = [p for i, p in enumerate(group["params"], first) if i in wanted]
        first += len(group["params"])
        if params or every_group:
            selected.append((group, params))
    return selected


def torch_step(optimizer: Base, indices: list[int], scale: float, *, guarded: bool, every_group: bool = False) -> None:
    """Steps the parameters at `indices` with torch's class, their gradients multiplied by `scale`.

    It is a twin that steps, not the parent's method: that walks all groups and may have been wrapped to run hooks.
    With `guarded`, parameters and states are put back should torch refuse a parameter half way.
    """
    selected = select(optimizer, indices, every_group)
    if not selected:
        return
    with contextlib.ExitStack() as undo:
        if guarded:  # which has SWATS bring its switch to where the parameters are: before the groups are copied
            undo.enter_context(restored_if_refused(optimizer, selected))
        groups = [{**group, "params": params} for group, params in selected]
        copied = {
            p for group in groups for p in group["params"] if not steps_as_it_is(p, optimizer.state.get(p, {}), group)
        }
        for part in in_turns(optimizer, groups, copied):
            _step_at_once(optimizer, part, copied, scale)


def _step_at_once(optimizer: Base, groups: list[dict[str, Any]], copied: set[Tensor], scale: float) -> None:
    for group in groups:
        if group.get("fused") and not all(_alike(p, optimizer.state.get(p, {})) for p in group["params"]):
            group["fused"] = False
    with contextlib.ExitStack() as undo:
        groups = undo.enter_context(in_float32(optimizer, groups, copied))
        if scale != 1:
            for p in dict.fromkeys(p for group in groups for p in group["params"]):  # one may be listed twice
                undo.callback(setattr, p, "grad", p.grad)
                p.grad = None if p.grad is None else p.grad * scale
        classes = [optimizer._torch_class_of(group) for group in groups]
        for cls in dict.fromkeys(classes):
            own = [group for group, its_class in zip(groups, classes, strict=True) if its_class is cls]
            step_twin(optimizer, cls, own)


def _alike(param: Tensor, state: dict[str, Any]) -> bool:
    """Whether all is laid out as torch's fused kernels for the CPU take it to be without looking."""
    if param.device.type != "cpu" or param.grad is None or param.grad.layout != torch.strided:
        return True
    dense: bool = torch.ops.aten.is_non_overlapping_and_dense(param)
    operands = [param.grad, *(v for v in state.values() if isinstance(v, Tensor) and v.shape == param.shape)]
    return dense and all(t.stride() == param.stride() for t in operands)


def step_twin(optimizer: Optimizer, cls: type[Optimizer], groups: list[dict[str, Any]]) -> None:
    """Steps these groups as `cls` does, without hooks, with all else from `optimizer`."""
    twin = cls.__new__(cls)
    twin.__dict__.update(optimizer.__dict__)
    # The gradients arrive unscaled and checked; torch's for-loop asserts that it is not asked to do that.
    twin.__dict__.pop("grad_scale", None)
    twin.__dict__.pop("found_inf", None)
    twin.param_groups = groups
    twin.defaults = {**optimizer.defaults, "max_grad_norm": None}
    step = cls.step.__wrapped__ if getattr(cls.step, "hooked", False) else cls.step  # type: ignore[attr-defined]
    step(twin)


@contextlib.contextmanager
def new_states(optimizer: Base, indices: list[int]) -> Iterator[None]:
    """Gives the parameters at `indices` their first states, and takes them away again if the block fails."""
    selected = select(optimizer, indices)
    with states_restored_on_error(optimizer, [p for _, params in selected for p in params]):
        for group, params in selected:
            check_formats(group)
            fresh = {p: None for p in params if not optimizer.state.get(p)}
            if fresh:
                optimizer._init_states(group, list(fresh))
            for p in params:
                complete(optimizer, group, p, p in fresh)
        yield


def look_again(
    optimizer: Base,
    refresh: Callable[..., tuple[list[int], ...]],
    leftover: list[int],
    missing: list[int],
    uncounted: list[int],
) -> list[int]:
    """Walks again, once states have been made and for step counts that have to be moved.

    Returns what torch has to update then: a step count that cannot be moved is torch's affair.
    """
    if missing:
        leftover, _, uncounted, _ = refresh(True, True)
    if uncounted:
        count_on_device(optimizer, uncounted, missing)
        leftover, _, still_uncounted, _ = refresh(True, True)
        leftover += still_uncounted
    return leftover


def square_sum(grad: Tensor) -> float:
    """The sum of squares of a gradient, in float64; of a DTensor's what is here."""
    grad = local(grad.detach())
    values = grad.coalesce().values() if grad.is_sparse else grad
    return number(values.abs().double().square().sum())


def refuse_sparse(optimizer: Base, indices: list[int]) -> None:
    """Raises what torch's class raises on a sparse gradient, before anything is written."""
    for group, params in select(optimizer, indices):
        if any(p.grad is not None and p.grad.is_sparse for p in params):
            message = optimizer._sparse_error(group)
            if message:
                raise RuntimeError(message)


def refuse_capturable(optimizer: Optimizer) -> None:
    """Raises what torch raises for capturable=True on a device that has no graphs, before anything is written.

    Looks at every parameter of such a group: for steps that are not on GPUs alone.
    """
    groups = [group for group in optimizer.param_groups if group.get("capturable") and not group.get("fused")]
    supported = _get_capturable_supported_devices() if groups else []
    if any(
        p.grad is not None and p.device.type not in supported and p.device.type != _C.GPU
        for group in groups
        for p in group["params"]
    ):
        raise AssertionError(f"If capturable=True, params and state_steps must be on supported devices: {supported}.")


def refuse_capture(optimizer: Optimizer) -> None:
    """Raises what torch raises where a CUDA graph is captured without capturable=True, before anything is written."""
    if not all(group.get("capturable", False) for group in optimizer.param_groups):
        raise RuntimeError(
            f"Attempting CUDA graph capture of step() for an instance of {type(optimizer).__name__} "
            "but param_groups' capturable is False."
        )


def count_on_device(optimizer: Optimizer, indices: list[int], fresh: list[int]) -> None:
    """Moves step counts and scalars at `indices` to where their parameters are: a kernel will keep them.

    Rules that keep no count get one, 0 for those whose first step is to come (`fresh`), else 1: only a kernel will know
    whether a step with an overflow was the first.
    """
    first_steps = set(fresh)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for i in indices:
        p, state = params[i], optimizer.state[params[i]]
        state |= {name: state[name].to(p.device) for name in SCALARS & state.keys()}
        if "step" not in state:
            state["step"] = torch.full((), 0.0 if i in first_steps else 1.0, dtype=torch.float32, device=p.device)
