"""Which path a parameter took, and why, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fusedopt import _C
from fusedopt.sharding import describe, is_dtensor


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


def explain(groups: list[dict[str, Any]], cls: type, reasons: Sequence[str | None]) -> list[Explanation]:
    """Explains for every parameter the reason that the plan gives, None of one that is fused."""
    params = [(g, i, p) for g, group in enumerate(groups) for i, p in enumerate(group["params"])]
    reasons = list(reasons) + ["no step yet"] * (len(params) - len(reasons))
    explanations = []
    for (g, i, p), reason in zip(params, reasons, strict=False):
        names = groups[g].get("param_names")
        idle = reason in ("no gradient", "no step yet")
        path = "none" if idle else "torch" if reason else "fused"
        name = names[i] if names else None
        text = reason or f"rule {cls.__name__.removeprefix('_Torch').removeprefix('_')}, {_where(p)}"
        shape = () if is_lazy(p) else tuple(p.shape)
        explanations.append(Explanation(g, i, name, shape, p.dtype, path, text))
    return explanations


def _where(param: Tensor) -> str:
    where = param.device.type.upper() if param.device.type == _C.GPU else f"CPU, {_C.isa()}"
    return f"{where}, {describe(param)}" if is_dtensor(param) else where
