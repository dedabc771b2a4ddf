"""Steps of SWATS up to its switch and beyond."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from cases import F64
from torch import Tensor

from fusedopt import SWATS, native

each_path = pytest.mark.parametrize("path", ["fused", "torch"])
OPTIONS = {"lr": 0.01, "betas": (0.9, 0.99)}
LARGE = [(3,), (40_000,), (0,), (17, 5)]  # with a tensor of several chunks


def on(path: str) -> Any:
    return native() if path == "torch" else contextlib.nullcontext()


def set_grads(params: list[Tensor], seed: int, without: Any = (), scale: float = 1.0) -> None:
    """A slope that stays, under noise: projections that differ from step to step."""
    rng = torch.Generator().manual_seed(seed)
    for i, p in enumerate(params):
        grad = (1 + torch.randn(p.shape, generator=rng, dtype=F64)) * scale
        p.grad = None if i in without else grad.to(p.dtype)


def switch_of(opt: SWATS, group: int = 0) -> list[float]:
    return opt.param_groups[group]["switch"].tolist()


def phases(opt: Any, params: list[Tensor], steps: int, path: str = "fused", **kwargs: Any) -> list[str]:
    seen = []
    for seed in range(steps):
        set_grads(params, seed, **kwargs)
        with on(path):
            opt.step()
        seen += opt.phase
    return seen
