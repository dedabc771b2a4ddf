"""GradScaler, which unscales by itself or, under fused=True, leaves it to the step; steps that an overflow skips."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from cases import BY_NAME, Case
from pair import (
    Pair,
    counts_steps,
    each_class,
    make_params,
    make_twin,
    paths_within_a_group,
    set_grads,
)
from scaling import (
    SCALE,
    TORCHS_FUSED,
    assert_unchanged,
    both_ways,
    everything,
    fused_pair,
    make_scaler,
    scaled_grads,
    steps,
)
from torch import Tensor, nn
from torch.optim import Optimizer

import fusedopt

pytestmark = [pytest.mark.steps, pytest.mark.on_gpu]


@each_class
@both_ways
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("overflows", [(), (0,), (1,), (6,), (0, 1, 6)], ids=str)
def test_an_overflow_skips_the_step(case: Case, overflows: tuple[int, ...], unscale: bool, fused: bool) -> None:
    pair = fused_pair(case, fused)
    runs = [steps(opt, params, range(8), overflows, unscale) for opt, params in pair]
    for _ in zip(*runs, strict=True):
        pair.compare()
    if counts_steps(case):
        assert all(pair.ours.state[p]["step"] == 8 - len(overflows) for p in pair.params[0])


@each_class
@both_ways
def test_the_first_step_after_an_overflow_is_a_first_step(case: Case, fused: bool) -> None:
    params, fresh = make_params([(100,)]), make_params([(100,)])
    opt, other = case.make(params, fused=fused), case.make(fresh, fused=fused)
    for _ in steps(opt, params, range(2), overflows=(0,)):
        pass
    for _ in steps(other, fresh, range(1, 2)):
        pass
    # The scale was halved meanwhile, which is exact.
    torch.testing.assert_close(params[0], fresh[0])
    torch.testing.assert_close(opt.state.get(params[0], {}), other.state.get(fresh[0], {}))


@each_class
@both_ways
def test_nan_gradient_skips_too(case: Case, fused: bool) -> None:
    params = make_params()
    opt, scaler = case.make(params, fused=fused), make_scaler()
    set_grads(params, 0)
    params[1].grad.view(-1)[0] = float("nan")
    before = everything(opt)
    scaler.step(opt)
    assert_unchanged(opt, before)


@each_class
@both_ways
@pytest.mark.parametrize("without", [{0, 1, 2}, {1}])
def test_without_gradients(case: Case, without: set[int], fused: bool) -> None:
    params = make_params()
    opt, scaler = case.make(params, fused=fused), make_scaler()
    set_grads(params, 0, without)
    before = everything(opt)
    if len(without) == 3 and not fused:
        with pytest.raises(AssertionError, match="No inf checks were recorded"):
            scaler.step(opt)
    else:
        scaler.step(opt)
    if len(without) == 3:  # found_inf is the int 0 here
        assert_unchanged(opt, before)
    elif counts_steps(case):
        assert [opt.state[p]["step"].item() if opt.state.get(p) else 0 for p in params] == [1, 0, 1]
    assert not hasattr(opt, "found_inf")
    assert not hasattr(opt, "grad_scale")


@each_class
def test_attributes_of_the_scaler_by_hand(case: Case) -> None:
    pair = Pair(case)
    for opt, params in pair:
        set_grads(params, 0)
        if opt is pair.ours:
            opt.grad_scale, opt.found_inf = None, torch.tensor(0.0)  # as after unscale_
        opt.step()
    pair.compare()
    before = everything(pair.ours)
    for found_inf in torch.tensor(1.0), torch.tensor([2.0]):
        pair.ours.grad_scale, pair.ours.found_inf = torch.tensor(4.0), found_inf
        pair.ours.step()
        assert_unchanged(pair.ours, before)
    pair.ours.found_inf = 0
    for opt, params in pair:
        scaled_grads(params, 1, 4.0 if opt is pair.ours else 1.0)
        opt.step()
    pair.compare()


@each_class
@both_ways
def test_a_fused_step_runs_its_hooks_when_it_is_skipped(case: Case, fused: bool) -> None:
    """As torch's: without fused=True the scaler does not call it."""
    params = make_params()
    opt, scaler, events = case.make(params, fused=fused), make_scaler(), []
    opt.register_step_post_hook(lambda *_: events.append("post"))
    scaled_grads(params, 0, SCALE, overflow=0)
    scaler.step(opt)
    assert events == ["post"] * fused


def supports_scaling(opt: Optimizer) -> bool:
    """What GradScaler and Lightning ask."""
    return getattr(opt, "_step_supports_amp_scaling", False)


@each_class
def test_only_fused_steps_take_the_scale(case: Case) -> None:
    for flags in {}, {"fused": None}, {"fused": False}, {"fused": True}:
        opt = case.make(make_params(), **flags)
        assert supports_scaling(opt) is (flags.get("fused") is True)
        assert supports_scaling(copy.deepcopy(opt)) is supports_scaling(opt)
        assert supports_scaling(pickle.loads(pickle.dumps(opt))) is supports_scaling(opt)
        if case.twin in TORCHS_FUSED:
            assert supports_scaling(opt) is supports_scaling(make_twin(case, make_params(), **flags))


@each_class
def test_loading_leaves_it_as_it_is(case: Case) -> None:
    """torch's class would take the flag of the saved groups, but not unscale."""
    for here, there in (False, True), (True, False):
        saved = case.make(make_params(), fused=there).state_dict()
        opt = case.make(make_params(), fused=here)
        opt.load_state_dict(saved)
        assert supports_scaling(opt) is here
        if case.twin in TORCHS_FUSED:
            twin = make_twin(case, make_params(), fused=here)
            twin.load_state_dict(saved)
            assert supports_scaling(twin) is here


@each_class
def test_fused_goes_with_neither_differentiable_nor_foreach(case: Case) -> None:
    with pytest.raises(RuntimeError, match="`fused` does not support `differentiable`"):
        case.make(make_params(), fused=True, differentiable=True)
    if case.twin:
        with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
            case.make(make_params(), fused=True, foreach=True)


@each_class
def test_hooks_and_subclasses_see_what_torchs_would(case: Case) -> None:
    """Whoever clips or logs before the step: unscaled gradients, unless fused=True asked for another thing."""

    seen: list[float] = []

    class Watching(case.cls):  # type: ignore[misc, name-defined]
        def step(self, closure: Any = None) -> Any:
            seen.append(self.param_groups[0]["params"][0].grad[0].item())
            return super().step(closure)

    for fused, factor in (False, 1.0), (True, SCALE):
        seen.clear()
        params = make_params()
        opt = Watching(params, **case.kwargs, fused=fused)
        opt.register_step_pre_hook(lambda opt, *_: seen.append(opt.param_groups[0]["params"][0].grad[0].item()))
        scaled_grads(params, 0, SCALE)
        unscaled = params[0].grad[0].item() / SCALE
        make_scaler().step(opt)
        assert seen == pytest.approx([unscaled * factor] * 2)


def mixed_params(kind: str) -> list[Tensor]:
    other = torch.complex64 if kind == "complex" else torch.float32
    return make_params([(6, 2), (6, 2)], (torch.float32, other))


def mixed_grads(params: list[Tensor], kind: str, seed: int, scale: float, overflow: int | None) -> None:
    scaled_grads(params, seed, scale)
    if overflow is not None:
        params[overflow].grad[0, 0] = float("inf")
    if kind == "sparse":
        params[1].grad[2:] = 0
        with torch.sparse.check_sparse_tensor_invariants():
            params[1].grad = params[1].grad.to_sparse(1)


@pytest.mark.parametrize("overflow", [None, 0, 1])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ["sgd-momentum", "adagrad-lr-decay"])
def test_sparse_beside_dense(name: str, overflow: int | None, first: bool) -> None:
    check_mixed(BY_NAME[name], "sparse", overflow, first, fused=False)  # with which torch refuses them


@each_class
@both_ways
@pytest.mark.parametrize("overflow", [None, 0, 1])
@pytest.mark.parametrize("first", [True, False])
def test_torchs_path_beside_fused(case: Case, overflow: int | None, first: bool, fused: bool) -> None:
    check_mixed(case, "strided", overflow, first, fused)


def check_mixed(case: Case, kind: str, overflow: int | None, first: bool, fused: bool) -> None:
    ours, theirs = mixed_params(kind), mixed_params(kind)
    if kind == "strided":
        for params in ours, theirs:
            params[1] = nn.Parameter(params[1].detach().repeat(1, 2)[:, ::2])
    opts = [(case.make(ours, fused=fused), ours), (make_twin(case, theirs), theirs)]
    scalers = [make_scaler(), make_scaler()]
    for step in range(3):
        for (opt, params), scaler in zip(opts, scalers, strict=True):
            now = overflow if step == (0 if first else 1) else None
            mixed_grads(params, kind, step, scaler.get_scale(), now)
            before = everything(opt)
            scaler.step(opt)
            if now is not None:
                assert_unchanged(opt, before)
            scaler.update()
        torch.testing.assert_close(ours, theirs)
    paths = paths_within_a_group(case, ["fused", "torch"])
    assert [e.path for e in opts[0][0].explain()] == paths  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["rmsprop-momentum", "adam-amsgrad", "sgd-momentum", "adagrad", "lamb-no-clip"])
def test_complex_beside_real_with_scale_by_hand(name: str) -> None:
    """GradScaler itself checks no complex gradients; the scale still reaches torch's path."""
    case = BY_NAME[name]
    pairs = [mixed_params("complex"), mixed_params("complex")]
    ours, plain = case.make(pairs[0]), case.make(pairs[1])
    for i in range(3):
        mixed_grads(pairs[0], "complex", i, 8.0, None)
        mixed_grads(pairs[1], "complex", i, 1.0, None)
        ours.grad_scale, ours.found_inf = torch.tensor(8.0), torch.tensor(float(i == 1))
        before = everything(ours)
        ours.step()
        if i == 1:
            assert_unchanged(ours, before)
        else:
            plain.step()
        torch.testing.assert_close(*pairs)
    assert [e.path for e in ours.explain()] == ["fused", "torch"]


@both_ways
def test_native_path_unscales_and_skips(fused: bool) -> None:
    params, expected = make_params(), make_params()
    opt, other = fusedopt.RMSprop(params, fused=fused), torch.optim.RMSprop(expected)
    with fusedopt.native():
        for _ in zip(steps(opt, params, range(4), (0, 2)), steps(other, expected, range(4), (0, 2)), strict=True):
            torch.testing.assert_close(params, expected)


@each_class
@both_ways
def test_a_fused_step_leaves_the_gradient_scaled(case: Case, fused: bool) -> None:
    params = make_params()
    opt = case.make(params, fused=fused)
    scaler = make_scaler()
    scaled_grads(params, 0, SCALE)
    grads = [p.grad.clone() for p in params]
    scaler.step(opt)
    if fused:
        assert all(map(torch.equal, [p.grad for p in params], grads))
    else:
        torch.testing.assert_close([p.grad * SCALE for p in params], grads)


@each_class
@both_ways
def test_clipping_sees_unscaled_gradients(case: Case, fused: bool) -> None:
    plain, scaled = make_params(), make_params()
    opt, other = case.make(plain, max_grad_norm=0.5), case.make(scaled, max_grad_norm=0.5, fused=fused)
    set_grads(plain, 0)
    opt.step()
    scaled_grads(scaled, 0, SCALE)
    make_scaler().step(other)
    torch.testing.assert_close(opt.grad_norm, other.grad_norm)
    torch.testing.assert_close(plain, scaled)
