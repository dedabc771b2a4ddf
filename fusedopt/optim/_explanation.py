"""Which path a parameter took, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fusedopt._extension import _C
from fusedopt.optim._base import Base
from fusedopt.optim._codecs import AVERAGE, KEY, MASTER, REST, is_coded
from fusedopt.optim._formats import elementwise
from fusedopt.sharding import describe, is_dtensor

_WORDS = {"fused": "fused", "torch": "by torch's implementation", "none": "not updated"}
_SHOWN = 3  # names in a line
_IDLE = (_C.REASONS["NoGradient"], _C.REASONS["NoStepYet"])


@dataclass(frozen=True)
class Explanation:
    """Which path a parameter took in the last step, and why."""

    group: int
    index: int
    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    path: str
    """"fused", "torch", or "none" where there was nothing to do."""
    reason: str


class Explanations(list[Explanation]):
    """A list of `Explanation`, one for each parameter; printed as a table with a line for all that are alike."""

    def __repr__(self) -> str:
        alike: dict[tuple[str, str], list[Explanation]] = {}
        for each in self:
            alike.setdefault((each.path, each.reason), []).append(each)
        width = len(str(len(self)))
        heads = [f"{len(rows):{width}} of {len(self)} {_WORDS[path]}:" for (path, _), rows in alike.items()]
        reasons = [reason for _, reason in alike]
        which = ["" if len(alike) == 1 else _which(rows, several_groups=self[-1].group > 0) for rows in alike.values()]
        columns = max(map(len, heads), default=0), max(map(len, reasons), default=0)
        lines = zip(heads, reasons, which, strict=True)
        table = [f"{head:{columns[0]}} {reason:{columns[1]}}  {names}".rstrip() for head, reason, names in lines]
        return "\n".join(table) or "no parameters"


def explain(optimizer: Base) -> Explanations:
    """For every parameter, the path it took in the last step and the reason.

    Printed, the list is a table that sums up what is alike; parameters that the optimizer got from
    `model.named_parameters()` have their names in it.
    """
    groups = enumerate(optimizer.param_groups)
    params = [(g, i, p, group.get("param_names")) for g, group in groups for i, p in enumerate(group["params"])]
    reasons = optimizer._reasons or (optimizer._plan.reasons() if optimizer._plan else [])
    reasons = list(reasons) + [_C.REASONS["NoStepYet"]] * (len(params) - len(reasons))
    steps, explanations = optimizer.__dict__.get("_in_backward"), Explanations()
    for (g, i, p, names), reason in zip(params, reasons, strict=False):
        if reason in _IDLE and steps is not None:
            reason = steps.reason(p, reason)
        idle = reason in _IDLE
        path = "none" if idle else "torch" if reason else "fused"
        name = names[i] if names else None
        rule = optimizer._torch_class.__name__.removeprefix("_Torch").removeprefix("_")
        text = reason or f"{rule}, {_where(p)}{_stored(p, optimizer.state.get(p, {}))}"
        shape = () if is_lazy(p) else tuple(p.shape)
        explanations.append(Explanation(g, i, name, shape, p.dtype, path, text))
    return explanations


def _which(rows: list[Explanation], *, several_groups: bool) -> str:
    """The first of these parameters, by name, or by place and shape, and how many more there are."""
    names = [
        each.name or f"{each.index}{f' of group {each.group}' * several_groups}: {[*each.shape]}"
        for each in rows[:_SHOWN]
    ]
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return ("" if rows[0].name else "parameter ") + ", ".join(names) + more


def _stored(param: Tensor, state: dict[str, Any]) -> str:
    states = elementwise(param, state).values()
    dtypes = sorted({"8 bits" if is_coded(v) else str(v.dtype).removeprefix("torch.") for v in states})
    text = "" if dtypes in ([], [str(param.dtype).removeprefix("torch.")]) else f", states in {' and '.join(dtypes)}"
    text += ", master weight" if REST in state or MASTER in state else ""
    text += ", stochastic rounding" if KEY in state else ""
    return text + (", average of the weights" if AVERAGE in state else "")


def _where(param: Tensor) -> str:
    where = param.device.type.upper() if param.device.type == _C.GPU else f"CPU, {_C.isa()}"
    return f"{where}, {describe(param)}" if is_dtensor(param) else where
