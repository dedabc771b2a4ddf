"""Parameters and states put back as they were, should torch refuse a step in the middle of its work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from fusedopt._extension import _C
from fusedopt.optim._base import Base
from fusedopt.optim._codecs import tensors_in
from fusedopt.optim._formats import DEFAULTS
from fusedopt.sharding import is_dtensor, local

Selected = list[tuple[dict[str, Any], list[Tensor]]]
"""Groups, each with some of its parameters."""

_TYPES = (Tensor, torch.nn.Parameter)
_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128}


@contextlib.contextmanager
def restored_if_refused(optimizer: Base, selected: Selected) -> Iterator[None]:
    """Puts these parameters and their states back, should torch refuse one of them in the middle of its work.

    Copies for that take as much memory, and often more time than the step. So there are none where all is as torch's
    class makes it itself, in which there is nothing to refuse.
    """
    # Of the groups themselves, not of copies: SWATS brings its switch to where the parameters are.
    numbers = [optimizer._numbers(group) for group, _ in selected]
    with torch._C.DisableTorchFunction():  # to look is no operation, which a mode would see
        refusable = bool(selected) and not _cannot_be_refused(optimizer, selected, numbers)
    with contextlib.ExitStack() as stack:
        if refusable:
            stepped = [p for _, params in selected for p in params if p.grad is not None]
            stack.enter_context(_restored_on_error(optimizer, stepped))
        yield


@contextlib.contextmanager
def states_restored_on_error(optimizer: Optimizer, params: list[Tensor]) -> Iterator[None]:
    """Leaves the states of `params` with the entries that they have now, should the block fail."""
    before = {p: dict(optimizer.state[p]) for p in params if p in optimizer.state}
    try:
        yield
    except BaseException:
        for p in params:
            optimizer.state.pop(p, None)
            if p in before:
                optimizer.state[p] = before[p]
        raise


@contextlib.contextmanager
def _restored_on_error(optimizer: Optimizer, params: list[Tensor]) -> Iterator[None]:
    states = [optimizer.state[p] for p in params if p in optimizer.state]
    values = [v for known in (*states, *optimizer.param_groups) for v in known.values()]
    tensors = {t for v in values for t in tensors_in(v)} | set(params)
    with states_restored_on_error(optimizer, params), contextlib.ExitStack() as undo:
        for t in tensors:
            if not _repeats_elements(t):  # which nothing can write
                undo.callback(_put_back, t, t.detach().clone())
        yield
        undo.pop_all()


def _put_back(t: Tensor, value: Tensor) -> None:
    # What torch does to an inference tensor is done when it refuses it.
    with torch.inference_mode(t.is_inference()), torch.no_grad():
        t.copy_(value)


def _cannot_be_refused(optimizer: Base, selected: Selected, numbers: list[tuple[Any, ...]]) -> bool:
    if _has_odd_numbers([group for group, _ in selected], numbers):
        return False
    ours: Any = optimizer
    options = optimizer.defaults.keys() - {*ours._own_options, *ours._group_options}
    states = [optimizer.state.get(p) for _, params in selected for p in params]
    if len({not state or "step" in state for state in states}) > 1:  # of a rule that counts, or of one that does not
        return False
    return all(
        options <= group.keys()
        and not group.get("fused")
        and group.keys().isdisjoint(DEFAULTS)
        and not any(_has_tensors(value) for name, value in group.items() if name not in ("params", "switch"))
        and _are_as_made(optimizer, group, params, rule)
        for (group, params), (rule, *_) in zip(selected, numbers, strict=True)
    )


def _has_odd_numbers(groups: list[dict[str, Any]], numbers: list[tuple[Any, ...]]) -> bool:
    """Whether a hyper-parameter is none of its rule's, so that torch might refuse it when other groups have stepped."""
    plan = _C.Plan()  # of no parameters: the optimizer's own has not seen these groups where every step is torch's
    bare = [{**group, "params": []} for group in groups]
    plan.refresh(bare, {}, numbers, [False] * len(groups), False, False, False)
    return plan.has_odd_numbers


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(map(_has_tensors, value)))


def _are_as_made(optimizer: Base, group: dict[str, Any], params: list[Tensor], rule: int) -> bool:
    """Whether parameters, gradients and states are what torch's class makes of usual parameters, or is used to."""
    names, scalars = _C.STATES[rule], _C.SCALARS[rule]
    devices: set[torch.device] = set()
    for p in params:
        state = optimizer.state.get(p) or {}
        if state and not state.keys() >= {*names, *scalars}:
            return False
        for name in ("step", *scalars):
            if name in state:
                if not _is_number(state[name]):
                    return False
                devices.add(state[name].device)
        arrays = [value for name in names if (value := state.get(name)) is not None]
        if p.grad is not None and not _go_together(p, p.grad, arrays, group):
            return False
    return len(devices) < 2


def _is_number(value: Any) -> bool:
    usual = type(value) is Tensor and value.dtype in (torch.float32, torch.float64) and value.numel() == 1
    return usual and not value.is_inference()


def _go_together(p: Tensor, grad: Tensor, states: list[Any], group: dict[str, Any]) -> bool:
    """Whether a usual parameter has a gradient and states like it, which can be written."""
    if is_dtensor(p):
        places = [(t.device_mesh, t.placements, t.shape) if is_dtensor(t) else None for t in (p, grad, *states)]
        if places.count(places[0]) < len(places):
            return False
        p, grad, *states = map(local, (p, grad, *states))
    form = p.shape, p.dtype, p.device
    for t in (p, grad, *states):
        if type(t) not in _TYPES or (t.shape, t.dtype, t.device) != form or t.is_conj() or t.is_neg():
            return False
    if p.dtype not in _DTYPES or p.layout != torch.strided:
        return False
    if any(t.is_inference() or _repeats_elements(t) for t in (p, *states)):
        return False
    if grad.layout == torch.strided:
        return all(t.layout == torch.strided for t in states)
    # Of a sparse gradient and something dense, some sums exist and some do not.
    sparse = [t for t in (grad, *states) if t.layout == torch.sparse_coo]
    dense = [t for t in states if t.layout == torch.strided]
    return (
        len(sparse) + len(dense) == 1 + len(states)
        and len({t.sparse_dim() for t in sparse}) == 1
        and not group.get("weight_decay")
        and not (dense and group.get("nesterov"))
    )


def _repeats_elements(t: Tensor) -> bool:
    t = local(t)
    strided = t.layout == torch.strided and 0 in t.stride()
    return strided and any(n > 1 and stride == 0 for n, stride in zip(t.shape, t.stride(), strict=True))
