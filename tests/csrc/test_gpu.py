"""The CUDA back end where it differs from the CPU's: launches, device truth, capture, streams."""

from __future__ import annotations

from typing import Any

import gpu
import pytest
import torch
from cases import BY_NAME, Case
from gpu_problem import (
    ALL_CASES,
    Pair,
    assert_equal,
    each_case,
    make_params,
    set_grads,
    steady,
    takes_two_passes,
)
from torch import Tensor
from torch.optim import Optimizer

import fusedopt
from fusedopt import _C

pytestmark = pytest.mark.steps

if not gpu.AVAILABLE:
    pytest.skip("no GPU; make test runs this on the CPU in a build of its own", allow_module_level=True)


# ---- Launches ----


@pytest.mark.parametrize("clip", [None, 1.0])
@each_case
def test_launches(case: Case, clip: float | None) -> None:
    params = make_params([(40,)] * 161)
    set_grads(params, 0)
    launches = (3 if takes_two_passes(case) else 1) + (clip is not None)
    assert steady(case.make(params, max_grad_norm=clip)) == (launches, 0, 0)


@pytest.mark.skipif(not gpu.ON_CPU, reason="the executor counts bytes, a profiler does not")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_bytes_are_the_declared_ones(case: Case, dtype: torch.dtype) -> None:
    """Every operand is moved once, also by tensors that are not aligned; a second pass reads what it needs again."""
    params = make_params([(16 * 1024 + 11,), (64,), (1,), (1003,)], dtype)
    params[1] = torch.randn(65, device=gpu.DEVICE).to(dtype)[1:].requires_grad_()
    set_grads(params, 0)
    ours = case.make(params, max_grad_norm=None)
    ours.step()
    gpu.work(ours.step)
    _C.executor.counters()
    ours.step()
    *_, loaded, stored = _C.executor.counters()
    of_chunks = 16 * 8 if getattr(ours, "phase", None) == ["adam"] else 0  # the sums that SWATS decides by
    assert loaded + stored == ours.bytes_per_step() + of_chunks  # type: ignore[attr-defined]


def test_one_launch_for_each_dtype() -> None:
    params = make_params([(40,)] * 9) + make_params([(40,)] * 9, torch.bfloat16)
    set_grads(params, 0)
    assert steady(fusedopt.AdamW(params)) == (2, 0, 0)
    assert steady(fusedopt.AdamW(params, max_grad_norm=1.0)) == (3, 0, 0)


@pytest.mark.below_python
@pytest.mark.parametrize(
    ("groups", "copies", "dtype"),
    [
        (1, 0, torch.float32),
        (300, 0, torch.float32),
        (2000, 1, torch.float32),
        (10, 0, torch.bfloat16),
        (300, 1, torch.bfloat16),
    ],
)
def test_groups_share_a_launch(groups: int, copies: int, dtype: torch.dtype) -> None:
    """A copy more where the rows of hyper-parameters exceed what a launch carries, 32 KB of float32, else 4."""
    params = make_params([(5,)] * groups, dtype)
    set_grads(params, 0)
    ours = fusedopt.AdamW(
        [{"params": [p], "lr": 1e-3 * (i + 1), "weight_decay": 0.01 * i} for i, p in enumerate(params)]
    )
    assert steady(ours) == (1, copies, 0)
    closeness = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.01}  # torch rounds more often
    twins = make_params([(5,)] * groups, dtype)
    set_grads(twins, 0)
    for i, (p, q) in enumerate(zip(params, twins, strict=True)):
        if i % 97 == 0:
            theirs = torch.optim.AdamW([q], lr=1e-3 * (i + 1), weight_decay=0.01 * i)
            for _ in range(3):
                theirs.step()
            torch.testing.assert_close(p, q, **closeness)


@pytest.mark.below_python
def test_a_step_count_for_each_of_5000_tensors() -> None:
    params = make_params([(3,)] * 5000)
    set_grads(params, 0)
    ours = fusedopt.AdamW(params)
    ours.step()
    for i, p in enumerate(params):
        ours.state[p]["step"].fill_(float(i))
    assert steady(ours) == (1, 1, 0)
    assert [ours.state[p]["step"].item() for p in params] == [i + 3 for i in range(5000)]


@pytest.mark.below_python  # as others here: with thousands of tensors, for the time it takes
@pytest.mark.parametrize(("tensors", "patches"), [(161, 1), (2500, 1), (2501, 2), (5000, 2)])
def test_changed_addresses_are_patched(tensors: int, patches: int) -> None:
    params = make_params([(3,)] * tensors)
    set_grads(params, 0)
    ours = fusedopt.SGD(params, momentum=0.9)
    steady(ours)
    held = [p.grad for p in params]  # so that the new ones lie elsewhere
    set_grads(params, 1)
    assert gpu.work(ours.step) == (1 + patches, 0, 0)
    assert len(held) == tensors


@pytest.mark.parametrize("capturable", [False, True] if gpu.REAL else [False])
@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_numbers_that_lie_on_the_gpu(name: str, capturable: bool) -> None:
    """A learning rate is read by the kernel. Other numbers are torch's affair, which reads them as it does."""
    case = BY_NAME[f"{name}-decay"]
    assert case.twin
    for option, path in ("lr", "fused"), ("weight_decay", "torch"), ("betas", "torch"), ("alpha", "torch"):
        both = []
        for make in case.make, case.twin:
            params = make_params([(3,), (16, 7)])
            opt = make(params, **(case.kwargs | {"capturable": capturable}))
            group = opt.param_groups[0]
            if option not in group:
                continue
            there = [torch.tensor(x, device=gpu.DEVICE) for x in (group[option] if option == "betas" else [0.25])]
            group[option] = tuple(there) if option == "betas" else there[0]
            for seed in range(3):
                set_grads(params, seed)
                opt.step()
            both.append(params)
            if make == case.make:
                assert {e.path for e in opt.explain()} == {path}
        if both:
            torch.testing.assert_close(*both)


def test_gains_need_no_step_count() -> None:
    params = make_params()
    set_grads(params, 0)
    optimizer = fusedopt.DeltaBarDelta(params, lr=0.1, capturable=True)
    optimizer.step()
    assert all(list(optimizer.state[p]) == ["gain", "grad_sign"] for p in params)


@pytest.mark.parametrize("eps", [1e-9, 4.0])
def test_swats_launches_for_each_group_and_dtype(eps: float) -> None:
    params = make_params() + make_params(dtype=torch.bfloat16)
    set_grads(params, 0)
    assert steady(fusedopt.SWATS(params, eps=eps)) == (2, 0, 0)
    groups = [{"params": params[:3]}, {"params": params[3:6]}, {"params": params[6:]}]
    assert steady(fusedopt.SWATS(groups, eps=eps)) == (4, 0, 0)


@pytest.mark.below_python
def test_only_what_has_changed_is_patched() -> None:
    params = make_params([(3,)] * 3000)
    set_grads(params, 0)
    ours = fusedopt.SGD(params, momentum=0.9)
    assert steady(ours) == (1, 0, 0)
    held = params[17].grad  # so that its memory is not used again
    params[17].grad = torch.ones_like(params[17])
    assert gpu.work(ours.step) == (2, 0, 0)
    assert gpu.work(ours.step) == (1, 0, 0)
    del held


# ---- Device truth ----


def scaled(optimizer: Optimizer, params: list[Tensor], seed: int, *, overflow: bool, found_inf: Tensor) -> None:
    """Sets what GradScaler would, and gradients times 1024."""
    set_grads(params, seed, scale=1024.0, in_place=True)
    if overflow:
        params[0].grad.view(-1)[0] = torch.inf
    found_inf.fill_(float(overflow))
    optimizer.found_inf = found_inf  # type: ignore[attr-defined]


OPTIONS: dict[str, dict[str, Any]] = {"sgd-nesterov": {"nesterov": False, "dampening": 0.5}}  # the first step differs


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("clip", [None, 0.5])
@each_case
def test_overflows(case: Case, clip: float | None, captured: bool) -> None:
    """At steps 1, 2 and 7, against a run in float64 that leaves those out."""
    options = OPTIONS.get(case.name, {}) | {"max_grad_norm": clip}
    params, exact = make_params(), make_params(dtype=torch.float64)
    ours, theirs = case.make(params, capturable=True, **options), case.make(exact, **options)
    found_inf = torch.zeros((), device=gpu.DEVICE)
    ours.grad_scale = torch.tensor(1024.0, device=gpu.DEVICE)  # type: ignore[attr-defined]
    graph = None
    for i in range(1, 10):
        scaled(ours, params, i, overflow=i in (1, 2, 7), found_inf=found_inf)
        before = [p.detach().clone() for p in params]
        if not captured:
            ours.step()
        else:
            if graph is None:
                warm_up(ours, params, found_inf)
                graph = gpu.Graph(ours.step)
            graph.replay()
        if i in (1, 2, 7):
            assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
            continue
        set_grads(exact, i)
        theirs.step()
        for p, q in zip(params, exact, strict=True):
            torch.testing.assert_close(p, q.to(p.dtype), rtol=2e-5, atol=2e-6)
            for name, value in theirs.state[q].items():
                ours_there = ours.state[p][name]  # a capturable optimizer's step is on the GPU, theirs on the host
                torch.testing.assert_close(ours_there, value.to(ours_there), rtol=2e-5, atol=2e-6)


def warm_up(optimizer: Optimizer, params: list[Tensor], found_inf: Tensor) -> None:
    """A step that an overflow skips: it makes the states, and changes nothing."""
    before = found_inf.clone()
    found_inf.fill_(1.0)
    optimizer.step()
    found_inf.copy_(before)


@pytest.mark.parametrize("double_step", [False, True])
def test_empty_tensors_count_steps(double_step: bool) -> None:
    params = make_params([(0,), (5,), (0, 3)])
    set_grads(params, 0)
    ours = fusedopt.AdamW(params, capturable=True)
    ours.step()
    if double_step:
        for p in params:
            ours.state[p]["step"] = ours.state[p]["step"].double()
    ours.step()
    assert [ours.state[p]["step"].item() for p in params] == [2, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_case
def test_lr_on_the_device(case: Case, dtype: torch.dtype) -> None:
    params, twins = make_params(), make_params()
    lr = torch.tensor(0.125, device=gpu.DEVICE, dtype=dtype)
    ours, theirs = case.make(params, lr=lr, capturable=True), case.make(twins, lr=0.125, capturable=True)
    for i in range(4):
        set_grads(params, i)
        set_grads(twins, i)
        lr.fill_(0.125 / (i + 1))
        theirs.param_groups[0]["lr"] = lr.item()
        ours.step()
        theirs.step()
        assert_equal(ours, theirs)


# ---- Streams ----


def test_the_current_stream() -> None:
    pair = Pair(BY_NAME["adamw"])
    for i in range(1, 9):
        with gpu.stream(i % 3):
            pair.eager(i)


def test_each_stream_has_a_table() -> None:
    params = make_params()
    set_grads(params, 0)
    ours = fusedopt.AdamW(params)
    assert steady(ours) == (1, 0, 0)
    with gpu.stream(2):
        assert gpu.work(ours.step) == (1, 1, 0)
    assert gpu.work(ours.step) == (1, 0, 0)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_nothing_but_overlapping_parameters(clip: float | None) -> None:
    base = torch.randn(10, device=gpu.DEVICE)
    params = [torch.nn.Parameter(base[:6]), torch.nn.Parameter(base[4:])]
    ours = fusedopt.SGD(params, lr=0.1, max_grad_norm=clip)
    for p in params:
        p.grad = torch.ones_like(p)
    before = base.clone()
    ours.step()
    assert {e.path for e in ours.explain()} == {"torch"}
    assert not torch.equal(base, before)
