"""What parameters and states are stored in, where that is not as in torch's classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer

from fusedopt._extension import _C
from fusedopt.optim._base import Base
from fusedopt.optim._codecs import (
    AVERAGE,
    EXTRAS,
    KEY,
    MASTER,
    REST,
    Coded,
    decoded,
    encoded,
    exact,
    is_coded,
    mixed,
    tensors_in,
)
from fusedopt.optim._processes import is_flattened
from fusedopt.sharding import is_dtensor, local

# Of the parameters that `state_dtype` is for, and those that it may name. Squares of gradients are mostly below what
# float16 holds, so states in it are only those of float16 parameters, as in torch's classes.
SHORT = (torch.float32, torch.bfloat16, torch.float16)
EIGHT_BITS: Literal["8bit"] = "8bit"
_CHOICES = (torch.float32, torch.bfloat16, EIGHT_BITS)
_HALVES = (torch.bfloat16, torch.float16)
# The states that are one number, whatever the parameter is.
SCALARS = frozenset[str]().union(["step"], *_C.SCALARS)
_OTHERS = SCALARS | {*EXTRAS}
# The states that are never negative, and that others are divided by: in 8 bits they have no sign, and are not 0 unless
# they were.
_NOT_NEGATIVE = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf", "step_size", "gain"}


class Formats(TypedDict, total=False):
    """What parameters and states are stored in: keyword arguments of every class here, and options of each group.

    Steps compute in float32, whatever numbers are stored in, and round once as they store.
    """

    state_dtype: torch.dtype | Literal["8bit"] | None
    """Of the states: None, as the parameter; torch.float32; torch.bfloat16, 2 bytes an element; or "8bit", a byte
    and, for each block of 256 elements, a float32. A state is then a tuple of the two, which torch's classes refuse;
    :func:`fusedopt.portable_state_dict` gives them what they read."""

    min_8bit_size: int
    """With `state_dtype="8bit"`, parameters of fewer elements keep their states in float32. 4096 by default."""

    master_weights: bool
    """Whether parameters in bfloat16 and float16 are kept in float32 too, exactly: those that the model computes with
    are the nearest to them. Costs 2 bytes an element beside bfloat16 (`master_rest`, the lower half of the float32) and
    4 beside float16 (`master`). The masters of a run are those that it would have in float32 with the same gradients,
    bit for bit. Where a parameter is set, by loading a model, say, its master is what was set, to within half of a
    bfloat16's last digit. Parameters in float32 are their own masters."""

    stochastic_rounding: bool
    """Whether what is stored in bfloat16 or 8 bits, parameters without master weights and states, is rounded up or down
    by chance, the nearer the likelier: on average nothing is lost of steps that are smaller than half the distance
    between two numbers, and would be lost each time. The bits come from the seed, the step, the parameter and the
    element, so they are the same for any number of threads, on a GPU and after a resume, and PyTorch's generators are
    not touched.
    """

    rounding_seed: int
    """For `stochastic_rounding`: another seed, other bits. 0 by default."""

    ema_decay: float | None
    """Of an exponential moving average of the weights, as :class:`fusedopt.training.ExponentialAverage` has it, made in
    the same pass over memory as the step: each step moves the average by 1 - `ema_decay` of the way to the parameter
    (to its master weight, where it has one), the n-th by at least 9 / (9 + n). `averaged_weights()` puts it into the
    model.
    The state has it as `average`, in float32, or with `stochastic_rounding` in bfloat16 if the other states are."""


MIN_8BIT_SIZE = 4096
DEFAULTS = {
    "state_dtype": None,
    "min_8bit_size": MIN_8BIT_SIZE,
    "master_weights": False,
    "stochastic_rounding": False,
    "rounding_seed": 0,
    "ema_decay": None,
}


def needs_count(group: dict[str, Any]) -> bool:
    return bool(group.get("stochastic_rounding")) or group.get("ema_decay") is not None


def check_formats(group: dict[str, Any]) -> None:
    """Raises ValueError on an option of :class:`Formats` that is none, or none for the parameters of the group."""
    dtype, masters, by_chance = (group.get(name) for name in ("state_dtype", "master_weights", "stochastic_rounding"))
    decay = group.get("ema_decay")
    if dtype is None and not masters and not by_chance and decay is None:
        return
    if dtype is not None and dtype not in _CHOICES:
        raise ValueError(
            f"Invalid state_dtype: {dtype!r}; it must be None (as the parameter), torch.float32, torch.bfloat16 or "
            "'8bit'"
        )
    if not isinstance(size := group.get("min_8bit_size", 0), int) or size < 0:
        raise ValueError(f"Invalid min_8bit_size: {size!r}; it must be an integer, at least 0")
    if not isinstance(seed := group.get("rounding_seed", 0), int):
        raise ValueError(f"Invalid rounding_seed: {seed!r}; it must be an integer")
    if decay is not None and not (isinstance(decay, float) and 0 < decay < 1):
        raise ValueError(f"Invalid ema_decay: {decay!r}; it must be None or between 0 and 1")
    names = [name for name in DEFAULTS if group.get(name) and name != "min_8bit_size"]
    if group.get("differentiable"):
        raise ValueError(f"{names[0]} is not for differentiable=True; leave it out")
    known = [p for p in group["params"] if not is_lazy(p)]
    for p in known:
        if p.dtype not in SHORT:
            raise ValueError(
                f"{names[0]} is for parameters of float32, bfloat16 and float16, and there is one of {p.dtype}: leave "
                "it out in their group"
            )
    if dtype == EIGHT_BITS and any(is_dtensor(p) or is_flattened(p) for p in known):
        raise ValueError(
            "state_dtype='8bit' is not for parameters that are sharded, as blocks of 256 would not end where shards "
            "do: use torch.bfloat16"
        )
    if masters and known and not any(p.dtype in _HALVES for p in known):
        raise ValueError(
            "master_weights=True does nothing for a group whose parameters are all in float32, which are their own "
            "masters: set master_weights=False in that group"
        )
    short = (torch.bfloat16, EIGHT_BITS)
    if group.get("centered") and (dtype in short or (by_chance and any((dtype or p.dtype) in short for p in known))):
        raise ValueError(
            "centered=True takes the root of the difference of two states, which would become negative where they are "
            "rounded: keep them in float32, by state_dtype=torch.float32"
        )
    rounds = [(p.dtype == torch.bfloat16 and not masters) or (dtype or p.dtype) in short for p in known]
    if by_chance and known and not any(rounds):
        raise ValueError(
            "stochastic_rounding is for what is stored in bfloat16 or 8 bits, and in the group nothing is: leave it "
            "out there, or store states in state_dtype=torch.bfloat16"
        )


def elementwise(param: Tensor, state: dict[str, Any]) -> dict[str, Tensor | Coded]:
    """The states of a rule that have a number for each element of the parameter."""

    def is_one(value: Any) -> bool:
        if is_coded(value):
            return value[0].shape == param.shape
        return isinstance(value, Tensor) and value.dtype.is_floating_point and value.shape == param.shape

    return {name: value for name, value in state.items() if name not in _OTHERS and is_one(value)}


def in_floats(value: Tensor | Coded) -> Tensor:
    """A state in a floating dtype: decoded, where it is of 8 bits."""
    return decoded(value) if is_coded(value) else value  # type: ignore[return-value]


def format_of_states(param: Tensor, group: dict[str, Any]) -> torch.dtype | Literal["8bit"]:
    """What the group asks the states of a parameter to be stored in."""
    dtype = group.get("state_dtype")
    if dtype == EIGHT_BITS and param.numel() < group.get("min_8bit_size", MIN_8BIT_SIZE):
        return torch.float32
    return dtype or param.dtype


def dtype_of_average(param: Tensor, group: dict[str, Any]) -> torch.dtype:
    """float32, but bfloat16 beside such states where it is rounded by chance: to nearest, it would stand still."""
    by_chance = group.get("stochastic_rounding") and format_of_states(param, group) == torch.bfloat16
    return torch.bfloat16 if by_chance else torch.float32


def stored(value: Tensor, name: str, how: torch.dtype | Literal["8bit"]) -> Tensor | Coded:
    """A state in the format `how`."""
    if not isinstance(how, str):
        return value.to(how)
    return encoded(value.float(), signed=name not in _NOT_NEGATIVE)


def complete(optimizer: Base, group: dict[str, Any], param: Tensor, fresh: bool) -> None:
    """Gives the state of a parameter what the options of its group ask for, where it has not got it."""
    state = optimizer.state[param]
    if fresh and group.get("state_dtype") is not None:
        how, first = format_of_states(param, group), optimizer._first_values(group)
        for name, value in elementwise(param, state).items():
            exactly = in_floats(value).float()  # the first values, which the parameter's dtype may not hold
            state[name] = stored(exactly.fill_(first[name]) if name in first else exactly, name, how)
    if group.get("master_weights") and param.dtype in _HALVES:
        name, dtype = (REST, torch.bfloat16) if param.dtype == torch.bfloat16 else (MASTER, torch.float32)
        if name not in state:
            detached = param.detach()
            state[name] = torch.zeros_like(detached, dtype=dtype) if name == REST else detached.to(dtype)
    if needs_count(group) and "step" not in state:  # of a rule that keeps no count, so that a GPU knows its first step
        state["step"] = torch.tensor(0.0 if fresh else 1.0, dtype=torch.float32, device="cpu")
    if group.get("stochastic_rounding") and KEY not in state:
        seed = mixed(int(group.get("rounding_seed", 0)) % 2**64)
        state[KEY] = mixed((seed + optimizer._index_of(param)) % 2**64) >> 1  # a signed number
    if group.get("ema_decay") is not None and AVERAGE not in state:
        state[AVERAGE] = exact(param, state, group).to(dtype_of_average(param, group))


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


def restore(saved: dict[str, Any], state: dict[str, Any], param: Tensor, group: dict[str, Any]) -> None:
    """Replaces what torch has cast by what was saved, as the options of the group say.

    Scalars, which torch casts to the dtype of the parameter and moves to its device, are of float32 or float64 again,
    and where the step count is: rounded to half precision, their product over many steps would go astray.
    """
    for name in SCALARS & state.keys() - {"step"}:
        original = saved.get(name)
        if isinstance(original, Tensor):
            wide = original.dtype if original.dtype == torch.float64 else torch.float32
            step = state.get("step")
            state[name] = original.to(step.device if isinstance(step, Tensor) else param.device, wide)
    for name in state.keys() & saved.keys():
        original = tuple(saved[name]) if type(saved[name]) is list else saved[name]  # of full distributed checkpoints
        if is_coded(original):  # which torch has cast, whatever codes mean
            state[name] = tuple(part.to(param.device) for part in original)
    how = format_of_states(param, group)
    for name, value in elementwise(param, state).items():
        original = saved.get(name)
        if is_coded(value):
            if is_dtensor(param):
                raise ValueError(
                    "states of 8 bits are not for DTensors: load what portable_state_dict(optimizer) gives"
                )
            state[name] = value if how == EIGHT_BITS else stored(decoded(value), name, how)
        elif group.get("state_dtype") is not None:
            if isinstance(original, Tensor) and original.shape == param.shape and original.dtype.is_floating_point:
                value = original.to(param.device)
            state[name] = stored(value, name, how)  # type: ignore[arg-type]
    for name in (REST, MASTER, AVERAGE):
        state.pop(name, None)
    if group.get("ema_decay") is not None and isinstance(average := saved.get(AVERAGE), Tensor):
        state[AVERAGE] = average.to(param.device, dtype_of_average(param, group))
    rest, master = saved.get(REST), saved.get(MASTER)
    if not group.get("master_weights"):
        return  # and those of parameters in the other half go: from now on the parameters count
    # Where torch's class has had them for a model in another dtype, it has cast them, whatever their bits mean.
    if param.dtype == torch.bfloat16 and isinstance(rest, Tensor) and rest.dtype == torch.bfloat16:
        state[REST] = rest.to(param.device)
    elif param.dtype == torch.float16 and isinstance(master, Tensor) and master.dtype == torch.float32:
        state[MASTER] = master.to(param.device)


def memory(optimizer: Optimizer) -> dict[str, int]:
    """Bytes on this process: of the parameters, of their gradients, and of the states by their names."""
    size: Callable[[Tensor], int] = lambda t: local(t).nbytes  # noqa: E731
    params = [p for group in optimizer.param_groups for p in group["params"] if not is_lazy(p)]
    total = {"parameters": sum(map(size, params))}
    total["gradients"] = sum(size(p.grad) for p in params if p.grad is not None)
    for p in params:
        for name, value in optimizer.state.get(p, {}).items():
            for part in tensors_in(value):
                total[name] = total.get(name, 0) + size(part)
    return total
