"""GradScaler's scale, gradients that are scaled or overflow, and steps that it skips."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gpu
import pytest
import torch
from cases import Case
from pair import (
    Pair,
    fresh_value,
    set_grads,
)
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from fusedopt.optim._fused import FusedStep

SCALE = 1000.0  # not a power of two


both_ways = pytest.mark.parametrize("fused", [False, True], ids=["scaler", "fused"])


TORCHS_FUSED = (torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam, torch.optim.AdamW)


def make_scaler(**kwargs: Any) -> GradScaler:
    scaler = GradScaler(gpu.TEST_DEVICE_TYPE, init_scale=SCALE, growth_interval=1000, **kwargs)
    scaler.scale(torch.zeros(()))  # it makes its scale at the first use
    return scaler


def scaled_grads(params: list[Tensor], seed: int, scale: float, overflow: int | None = None) -> None:
    set_grads(params, seed)
    for i, p in enumerate(params):
        p.grad *= scale
        if i == overflow:
            p.grad.view(-1)[-1] = float("inf")


def everything(opt: Optimizer) -> dict[tuple[int, str], tuple[Tensor, int]]:
    """Copies of all parameters and states, with their version counters."""
    params = [p for group in opt.param_groups for p in group["params"]]
    tensors = {(i, "param"): p for i, p in enumerate(params)}
    tensors |= {(i, name): value for i, p in enumerate(params) for name, value in opt.state.get(p, {}).items()}
    return {key: (t.detach().clone(), t._version) for key, t in tensors.items()}


def assert_unchanged(opt: Optimizer, before: dict[tuple[int, str], tuple[Tensor, int]]) -> None:
    after = everything(opt)
    if isinstance(opt, FusedStep) and gpu.ASYNCHRONOUS:
        # The host, which does not wait for the GPU, has made the first states and counted versions.
        for key in after.keys() - before.keys():
            expected = torch.tensor(fresh_value(key[1], opt.param_groups[0]["lr"]), dtype=torch.float32)
            assert (after.pop(key)[0] == expected).all()
        after = {key: (t, before[key][1]) for key, (t, _) in after.items()}
    assert after.keys() == before.keys()
    for (a, a_version), (b, b_version) in zip(after.values(), before.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, check_device=False)
        assert a_version == b_version


def steps(
    opt: Optimizer, params: list[Tensor], seeds: Any, overflows: Any = (), unscale: bool = False
) -> Iterator[int]:
    """Training steps with a scaler of its own; asserts that a step that overflows changes nothing."""
    scaler = make_scaler()
    for i in seeds:
        overflow = i % len(params) if i in overflows else None
        scaled_grads(params, i, scaler.get_scale(), overflow)
        before = everything(opt)
        if unscale:
            scaler.unscale_(opt)
        scaler.step(opt)
        if overflow is not None:
            assert_unchanged(opt, before)
        scaler.update()
        yield i


def fused_pair(case: Case, fused: bool) -> Pair:
    pair = Pair(case)
    pair.ours = case.make(pair.params[0], fused=fused)
    return pair
