"""Steps in float32 of what torch's classes, which know one dtype, could not step themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import torch
from torch import Tensor

from fusedopt._extension import _C
from fusedopt.optim._base import Base
from fusedopt.optim._codecs import (
    AVERAGE,
    EXTRAS,
    KEY,
    MASTER,
    OF_AVERAGE,
    REST,
    Coded,
    encoded,
    exact,
    is_coded,
    rounded_by_chance,
    share_of_step,
    split,
    tensors_in,
)
from fusedopt.optim._formats import (
    EIGHT_BITS,
    SHORT,
    check_formats,
    complete,
    elementwise,
    format_of_states,
    in_floats,
    needs_count,
    stored,
)
from fusedopt.optim._plain import number
from fusedopt.sharding import like, local


def steps_as_it_is(param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> bool:
    """Whether torch's class may step the parameter and its states themselves.

    Raises:
        ValueError: an option of storage is not for the parameter, which has become float64 since.
    """
    if param.dtype not in SHORT:
        check_formats({**group, "params": [param]})
        return True
    if group.get("master_weights") or needs_count(group):
        return False
    states = elementwise(param, state).values()
    formats: set[Any] = {EIGHT_BITS if is_coded(v) else v.dtype for v in states} or {format_of_states(param, group)}
    return formats == {param.dtype} or not formats <= {EIGHT_BITS, *SHORT}


class InFloat32:
    """A parameter, its gradient and states in float32, to be stepped by what knows one dtype only."""

    def __init__(self, optimizer: Base, group: dict[str, Any], param: Tensor) -> None:
        self._optimizer, self._group, self._param = optimizer, group, param
        state = optimizer.state.get(param, {})
        self._fresh = not state
        self._count = number(state["step"]) if "step" in state else float(not self._fresh)
        self.param = exact(param, state, group).requires_grad_(param.requires_grad)
        """The parameter, with its gradient."""
        self.param.grad = None if param.grad is None else param.grad.float()
        own = {name: value for name, value in state.items() if name not in EXTRAS}
        for name, value in own.items():
            if is_coded(value) and value[0].shape != param.shape:  # which torch would take for a tuple
                raise RuntimeError(
                    f"a parameter has shape {list(param.shape)} and its {name} {list(value[0].shape)}: load or make "
                    "states that fit"
                )
        self.state = own | {name: in_floats(value).float() for name, value in elementwise(param, own).items()}
        """Its state: what has one number is the optimizer's own."""

    @torch.no_grad()
    def put_back(self, made: dict[str, Any]) -> None:
        """Stores what the parameter and, in `made`, its state have become."""
        optimizer, group, param = self._optimizer, self._group, self._param
        arrays = {name: in_floats(value) for name, value in elementwise(self.param, made).items()}
        by_chance = group.get("stochastic_rounding")
        how = format_of_states(param, group)
        needs_dense = how == EIGHT_BITS or (by_chance and how == torch.bfloat16)
        if needs_dense and any(value.is_sparse for value in arrays.values()):
            raise RuntimeError(
                "momentum of sparse gradients is sparse, which is not stored in 8 bits or rounded by chance: leave "
                "state_dtype='8bit' and stochastic_rounding out in its group"
            )
        if not made and not needs_count(group) and not group.get("master_weights"):
            param.copy_(self.param)
            return
        kept = optimizer.state[param]
        for name, value in made.items():
            if name in arrays and name not in kept:
                kept[name] = stored(value.clone(), name, how)  # made to be written
            elif name not in arrays and isinstance(kept.get(name), Tensor):
                kept[name].copy_(value)
            elif name not in arrays:
                kept[name] = value
        complete(optimizer, group, param, self._fresh)
        if needs_count(group) and number(kept["step"]) == self._count:  # the class keeps no count
            kept["step"] += 1

        def put(to: Tensor | Coded, value: Tensor, operand: int) -> None:
            chance = (kept[KEY], number(kept["step"]), operand) if KEY in kept and by_chance else None
            if is_coded(to):
                made = encoded(value, signed=to[0].dtype == torch.int8, chance=chance)
                to[0].copy_(made[0]), to[1].copy_(made[1])
            else:
                if chance is not None and to.dtype == torch.bfloat16:
                    value = like(to, rounded_by_chance(local(value), *chance))
                to.copy_(value)

        names = _C.STATES[optimizer._numbers(group)[0]]
        for name, value in arrays.items():
            put(kept[name], value, 2 + names.index(name))
        if group.get("master_weights") and param.dtype == torch.bfloat16:
            upper, rest = split(local(self.param))
            param.copy_(like(param, upper))
            kept[REST].copy_(like(param, rest))
        else:
            if group.get("master_weights") and param.dtype == torch.float16:
                kept[MASTER].copy_(self.param)
            put(param, self.param, 0)
        if group.get("ema_decay") is not None:
            share = share_of_step(group["ema_decay"], number(kept["step"]))
            put(kept[AVERAGE], torch.lerp(kept[AVERAGE].float(), exact(param, kept, group), share), OF_AVERAGE)


def _span(t: Tensor) -> tuple[str, int, int] | None:
    """The device of a tensor, and the addresses of its first byte and after its last; None of one without memory."""
    t = local(t.detach())
    if t.layout != torch.strided or t.numel() == 0 or t.untyped_storage().device.type == "meta":  # a fake one's too
        return None
    with suppress(RuntimeError):  # nor has every subclass a memory
        length = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        return str(t.device), t.data_ptr(), t.data_ptr() + length * t.element_size()
    return None


def share_memory(optimizer: Base, params: Iterable[Tensor]) -> bool:
    """Whether a step of these parameters writes something twice, or writes where one of their gradients is."""
    spans = []
    for p in params:
        written = [p, *(part for value in optimizer.state.get(p, {}).values() for part in tensors_in(value))]
        spans += [(span, True) for t in written if (span := _span(t))]
        spans += [] if p.grad is None or (span := _span(p.grad)) is None else [(span, False)]
    ends = {True: ("", 0), False: ("", 0)}  # how far what is written reaches, and what is read
    for (device, begin, end), writes in sorted(spans):
        if (device, begin) < ends[True] or (writes and (device, begin) < ends[False]):
            return True
        ends[writes] = max(ends[writes], (device, end))
    return False


def in_turns(optimizer: Base, groups: list[dict[str, Any]], copied: set[Tensor]) -> list[list[dict[str, Any]]]:
    """The groups in parts to be stepped one after another: one part, if no copy in float32 hides another one's step.

    Raises:
        RuntimeError: where one would, and the rule needs all at once.
    """
    params = [(group, p) for group in groups for p in group["params"]]
    if not copied or not share_memory(optimizer, [p for _, p in params]):
        return [groups]
    if optimizer._sum_scope == "group" or optimizer._spread is not None:
        refuse_sharing(optimizer)
    return [[{**group, "params": [p]}] for group, p in params]


def refuse_sharing(optimizer: Base) -> NoReturn:
    """Raises where parameters are stepped on copies, which would not see each other's steps."""
    raise RuntimeError(
        f"{type(optimizer).__name__}: parameters, states or gradients share memory, and are stored in formats other "
        "than torch's (state_dtype, master_weights, stochastic_rounding, ema_decay): leave these options out in their "
        "groups, or give each its own memory"
    )


@contextmanager
def in_float32(optimizer: Base, groups: list[dict[str, Any]], copied: set[Tensor]) -> Iterator[list[dict[str, Any]]]:
    """Yields the groups with copies in float32 of those parameters that torch's classes could not step themselves.

    What has become of the copies is stored in the parameters and their states at the end of the block.
    """
    copies: list[InFloat32] = []

    def copy(p: Tensor, group: dict[str, Any]) -> Tensor:
        if p not in copied:
            return p
        copies.append(InFloat32(optimizer, group, p))
        if copies[-1].state:
            optimizer.state[copies[-1].param] = copies[-1].state
        return copies[-1].param

    try:
        yield [{**group, "params": [copy(p, group) for p in group["params"]]} for group in groups]
        for each in copies:
            if each.param.grad is not None:
                each.put_back(optimizer.state.get(each.param, {}))
    finally:
        for each in copies:
            optimizer.state.pop(each.param, None)
