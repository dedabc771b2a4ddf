"""zero_grad, which is ours where nothing can tell."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from cases import Case
from pair import Pair, each_class, make_params, set_grads
from torch.optim import Optimizer

import fusedopt

pytestmark = [pytest.mark.steps, pytest.mark.on_gpu]


@each_class
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(case: Case, set_to_none: bool) -> None:
    pair = Pair(case)
    pair.step(0)
    for opt, params in pair:
        opt.zero_grad(set_to_none)
        assert all((p.grad is None) if set_to_none else not p.grad.any() for p in params)
        opt.step()
    pair.compare()


@pytest.mark.parametrize("reason", ["compiling", "another class"])
def test_zero_grad_is_torchs_where_it_may_matter(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def zero_grad(opt: Optimizer, set_to_none: bool = True) -> None:
        calls.append(opt)
        original(opt, set_to_none)

    original = Optimizer.zero_grad
    mixin = type("Mixin", (Optimizer,), {"zero_grad": zero_grad})
    params = make_params([(3,)])
    set_grads(params, 0)
    if reason == "compiling":
        opt = fusedopt.AdamW(params)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.setattr(Optimizer, "zero_grad", zero_grad)
        monkeypatch.setattr("fusedopt.optim._fused._torch_zero_grad", zero_grad)
    else:
        opt = type("Mixed", (fusedopt.AdamW, mixin), {})(params)
    opt.zero_grad()
    assert calls == [opt]
    assert params[0].grad is None


@pytest.mark.parametrize("profiled", [False, True])
def test_zero_grad_tells_the_profiler_when_it_listens(profiled: bool) -> None:
    params = make_params([(3,)])
    opt = fusedopt.AdamW(params)
    set_grads(params, 0)
    with torch.profiler.profile() if profiled else nullcontext() as profile:
        opt.zero_grad()
    assert params[0].grad is None
    if profiled:
        assert "Optimizer.zero_grad#AdamW.zero_grad" in {event.name for event in profile.events()}
