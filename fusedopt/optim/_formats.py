"""What the states of an optimizer are stored in, where that is not what its parameters are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer

from fusedopt import _C
from fusedopt.sharding import is_dtensor, local

if TYPE_CHECKING:
    from fusedopt.optim._fused import FusedStep

# Of the parameters that `state_dtype` is for, and those that it may name. Squares of gradients are mostly below what
# float16 holds, so states in it are only those of float16 parameters, as in torch's classes.
_SHORT = (torch.float32, torch.bfloat16, torch.float16)
_CHOICES = (torch.float32, torch.bfloat16)
# The states that are one number, whatever the parameter is.
SCALARS = frozenset[str]().union(["step"], *_C.SCALARS)


def check_state_dtype(group: dict[str, Any]) -> None:
    """Raises ValueError on a `state_dtype` that is none, or none for the parameters of the group."""
    dtype = group.get("state_dtype")
    if dtype is None:
        return
    if dtype not in _CHOICES:
        raise ValueError(
            f"Invalid state_dtype: {dtype!r}; it must be None (as the parameter), torch.float32 or torch.bfloat16"
        )
    if group.get("differentiable"):
        raise ValueError("state_dtype is not for differentiable=True; leave it at None")
    for p in group["params"]:
        if not is_lazy(p) and p.dtype not in _SHORT:
            raise ValueError(
                f"state_dtype is for parameters of float32, bfloat16 and float16, and there is one of {p.dtype}: leave "
                "it at None in their group"
            )


def elementwise(param: Tensor, state: dict[str, Any]) -> dict[str, Tensor]:
    """The states that have a number for each element of the parameter."""
    return {
        name: value
        for name, value in state.items()
        if name not in SCALARS
        and isinstance(value, Tensor)
        and value.dtype.is_floating_point
        and value.shape == param.shape
    }


def store(state: dict[str, Any], param: Tensor, dtype: torch.dtype | None) -> None:
    """Stores what a parameter has for each element in `dtype`, where that is not None."""
    if dtype is not None:
        state |= {name: value.to(dtype) for name, value in elementwise(param, state).items()}


@contextmanager
def kept_dtypes(optimizer: Optimizer) -> Iterator[dict[Tensor, dict[str, Any]]]:
    """Yields what is loaded within the block, by parameter, as it was saved.

    torch's `load_state_dict` casts states to the dtype of their parameter, before anybody else sees them.
    """
    loaded: dict[Tensor, dict[str, Any]] = {}

    def look(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [p for group in optimizer.param_groups for p in group["params"]]
        loaded.update({p: state_dict["state"].get(i, {}) for p, i in zip(params, saved, strict=False)})

    handle = optimizer.register_load_state_dict_pre_hook(look)  # the last to see it, whatever others make of it
    try:
        yield loaded
    finally:
        handle.remove()


def restore(saved: dict[str, Any], state: dict[str, Any], param: Tensor, dtype: torch.dtype | None) -> None:
    """Replaces states that torch has cast by what was saved of them, in `dtype`, where that is not None.

    Scalars, which torch casts to the dtype of the parameter and moves to its device, are of float32 or float64 again,
    and where the step count is: rounded to half precision, their product over many steps would go astray.
    """
    for name in SCALARS & state.keys() - {"step"}:
        original = saved.get(name)
        if isinstance(original, Tensor):
            exact = original.dtype if original.dtype == torch.float64 else torch.float32
            step = state.get("step")
            state[name] = original.to(step.device if isinstance(step, Tensor) else param.device, exact)
    if dtype is None:
        return
    for name, value in elementwise(param, state).items():
        original = saved.get(name)
        same = isinstance(original, Tensor) and original.shape == value.shape and original.dtype.is_floating_point
        state[name] = (original.to(value.device) if same else value).to(dtype)  # type: ignore[union-attr]


def is_mixed(param: Tensor, state: dict[str, Any], dtype: torch.dtype | None) -> bool:
    """Whether torch's class would meet, or make, states of another dtype than the parameter's that float32 holds."""
    dtypes = {value.dtype for value in elementwise(param, state).values()} or {dtype or param.dtype}
    return dtypes != {param.dtype} and dtypes <= set(_SHORT)


@contextmanager
def in_float32(optimizer: FusedStep, groups: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yields the groups with copies in float32 of those parameters that are mixed, gradients and states included.

    What has become of the copies is stored in the parameters at the end of the block: torch's classes compute on
    tensors of one dtype only.
    """
    copies: list[tuple[Tensor, Tensor, torch.dtype | None]] = []

    def copy(p: Tensor, dtype: torch.dtype | None) -> Tensor:
        state = optimizer.state.get(p, {})
        if is_dtensor(p) or p.dtype not in _SHORT or not is_mixed(p, state, dtype):
            return p
        wide = p.detach().to(torch.float32, copy=True).requires_grad_(p.requires_grad)
        wide.grad = None if p.grad is None else p.grad.float()
        if state:
            optimizer.state[wide] = state | {name: v.float() for name, v in elementwise(p, state).items()}
        copies.append((p, wide, dtype))
        return wide

    try:
        stepped = [{**g, "params": [copy(p, g.get("state_dtype")) for p in g["params"]]} for g in groups]
        yield stepped
        with torch.no_grad():
            for p, wide, dtype in copies:
                p.copy_(wide)
                made = optimizer.state.get(wide, {})
                kept, arrays = optimizer.state[p] if made else {}, elementwise(wide, made)
                for name, value in made.items():
                    if name in kept and isinstance(kept[name], Tensor):
                        kept[name].copy_(value)
                    else:
                        kept[name] = value.to(dtype or p.dtype) if name in arrays else value
    finally:
        for _, wide, _ in copies:
            optimizer.state.pop(wide, None)


def memory(optimizer: Optimizer) -> dict[str, int]:
    """Bytes on this process: of the parameters, of their gradients, and of the states by their names."""
    size: Callable[[Tensor], int] = lambda t: local(t).nbytes  # noqa: E731
    params = [p for group in optimizer.param_groups for p in group["params"] if not is_lazy(p)]
    total = {"parameters": sum(map(size, params))}
    total["gradients"] = sum(size(p.grad) for p in params if p.grad is not None)
    for p in params:
        for name, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                total[name] = total.get(name, 0) + size(value)
    return total
