"""SGD with the learning rate inside the velocity: what differs from torch's form, and how one becomes the other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pair import make_params, set_grads
from reference import ReferenceClassicSGD
from torch import Tensor, nn

import fusedopt
from fusedopt import SGD

pytestmark = pytest.mark.usefixtures("one_thread")

F64 = torch.float64
RATES = [1.0, 0.1, 0.5, 0.01]
OPTIONS = [{}, {"nesterov": True}, {"dampening": 0.3}, {"weight_decay": 0.2, "maximize": True}]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
each_path = pytest.mark.parametrize("native", [False, True], ids=["fused", "native"])


def go(opt: torch.optim.Optimizer, rates: list[float], seed: int = 0, native: bool = False) -> None:
    """One step at each of these rates."""
    for i, lr in enumerate(rates, seed):
        for group in opt.param_groups:
            group["lr"] = lr
            set_grads(group["params"], i)
        if native:
            with fusedopt.native():
                opt.step()
        else:
            opt.step()


@each_path
@pytest.mark.parametrize(
    ("form", "nesterov", "expected"),
    [
        ("torch", False, [-1, -1 - 0.1 * 1.5]),
        ("torch", True, [-1.5, -1.5 - 0.1 * (1 + 0.5 * 1.5)]),
        ("classic", False, [-1, -1 - (0.5 + 0.1)]),
        ("classic", True, [-1.5, -1.5 - (0.1 + 0.5 * 0.6)]),
    ],
)
def test_by_hand(form: Any, nesterov: bool, expected: list[float], native: bool) -> None:
    """Two gradients of 1, the rate falling from 1 to 0.1."""
    p = torch.zeros(1, dtype=F64)
    opt = SGD([p], momentum=0.5, nesterov=nesterov, momentum_form=form)
    seen = []
    for lr in (1.0, 0.1):
        p.grad, opt.param_groups[0]["lr"] = torch.ones(1, dtype=F64), lr
        with fusedopt.native() if native else torch.no_grad():
            opt.step()
        seen.append(p.item())
    assert seen == pytest.approx(expected, rel=1e-15)
    assert opt.state[p]["momentum_buffer"].item() == pytest.approx(1.5 if form == "torch" else 0.6, rel=1e-15)
    assert opt.explain()[0].path == ("torch" if native else "fused")


@each_path
@each_option
def test_both_forms_agree_while_the_rate_is_constant(options: dict[str, Any], native: bool) -> None:
    a, b = (make_params(dtypes=(F64,)) for _ in range(2))
    classic = SGD(a, momentum=0.9, momentum_form="classic", **options)
    theirs = torch.optim.SGD(b, momentum=0.9, **options)
    for opt in classic, theirs:
        go(opt, [0.1] * 5, native=native)
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    for p, q in zip(a, b, strict=True):
        velocity, buffer = classic.state[p]["momentum_buffer"], theirs.state[q]["momentum_buffer"]
        torch.testing.assert_close(velocity, 0.1 * buffer, rtol=1e-13, atol=1e-14)
    for opt in classic, theirs:
        go(opt, [0.01], native=native)
    assert not any(torch.allclose(p, q, rtol=1e-3, atol=0) for p, q in zip(a, b, strict=True))


def test_nesterov_is_the_lectures() -> None:
    """v <- a v + lr grad(w - a v), w <- w - v, under a schedule: our parameters are the points w - a v."""
    a, target = 0.9, torch.tensor([1.0, -2.0, 3.0], dtype=F64)
    curvature = torch.tensor([1.0, 0.3, 0.1], dtype=F64)
    w, v = torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)
    p = torch.zeros(3, dtype=F64)
    opt = SGD([p], momentum=a, nesterov=True, momentum_form="classic")
    for lr in RATES * 3:
        v = a * v + lr * curvature * (w - a * v - target)
        w = w - v
        p.grad, opt.param_groups[0]["lr"] = curvature * (p - target), lr
        opt.step()
        torch.testing.assert_close(p, w - a * v, rtol=1e-13, atol=1e-14)


def complex_and_real() -> list[Tensor]:
    return make_params([(4,), (3,)], (torch.complex128, F64))


def strided() -> list[Tensor]:
    return [nn.Parameter(torch.arange(12.0, dtype=F64).view(3, 4)[:, ::2]), *make_params([(3,)], (F64,))]


@pytest.mark.parametrize("make", [complex_and_real, strided])
@each_option
def test_fallback(make: Callable[[], list[Tensor]], options: dict[str, Any]) -> None:
    """Groups of both forms in one optimizer: torch's own class steps the one, the plain implementation the other."""
    ours, classic, theirs = make() + make(), make(), make()
    groups = [{"params": ours[:2], "momentum_form": "classic"}, {"params": ours[2:]}]
    opt = SGD(groups, momentum=0.9, **options)
    references = ReferenceClassicSGD(classic, momentum=0.9, **options), torch.optim.SGD(theirs, momentum=0.9, **options)
    for each in opt, *references:
        go(each, RATES)
    assert [e.path for e in opt.explain()] == ["torch", "fused"] * 2
    torch.testing.assert_close(ours[:2], classic, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(ours[2:], theirs, rtol=1e-13, atol=1e-14)
    assert torch.equal(ours[2], theirs[0])


@pytest.mark.parametrize("nesterov", [False, True])
def test_sparse_gradient(nesterov: bool) -> None:
    p, q = (torch.ones(6, 2, dtype=F64) for _ in range(2))
    opt = SGD([p], momentum=0.9, nesterov=nesterov, momentum_form="classic")
    reference = ReferenceClassicSGD([q], momentum=0.9, nesterov=nesterov)
    for i, lr in enumerate(RATES):
        grad = torch.zeros(6, 2, dtype=F64)
        grad[i] = 1.0 + i
        q.grad, p.grad = grad, grad if i == 2 else grad.to_sparse(1)
        for each in opt, reference:
            each.param_groups[0]["lr"] = lr
            each.step()
        torch.testing.assert_close(p, q)
        assert opt.explain()[0].path == ("fused" if i == 2 else "torch")


@each_path
def test_without_momentum_the_form_makes_no_difference(native: bool) -> None:
    a, b = make_params(), make_params()
    classic, theirs = SGD(a, momentum_form="classic", weight_decay=0.1), SGD(b, weight_decay=0.1)
    for opt in classic, theirs:
        go(opt, RATES, native=native)
    assert all(map(torch.equal, a, b))
    assert not classic.state


# State dicts


def saved_at(form: str | None, rates: list[float], **options: Any) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    """An optimizer of this form, None for torch's own class, after steps at these rates."""
    params = make_params(dtypes=(F64,))
    cls, own = (torch.optim.SGD, {}) if form is None else (SGD, {"momentum_form": form})
    opt = cls(params, momentum=0.9, **own, **options)
    go(opt, rates)
    return opt, params


def assert_same(state_dict: dict[str, Any], before: dict[str, Any]) -> None:
    assert state_dict["param_groups"] == before["param_groups"]
    torch.testing.assert_close(state_dict["state"], before["state"], rtol=0, atol=0)


@pytest.mark.parametrize(("there", "here"), [("torch", "classic"), ("classic", "torch"), (None, "classic")])
@each_option
def test_the_other_form_is_converted(there: str | None, here: Any, options: dict[str, Any]) -> None:
    opt, params = saved_at(there, RATES, **options)
    moved = [p.detach().clone() for p in params]
    state_dict = opt.state_dict()
    before = copy.deepcopy(state_dict)
    other = SGD(moved, momentum=0.9, momentum_form=here, **options)
    other.load_state_dict(state_dict)
    assert_same(state_dict, before)
    assert other.param_groups[0].get("momentum_form", "torch") == here
    # The rate of the state_dict stays: so do the steps.
    for each in opt, other:
        go(each, [RATES[-1]] * 3, seed=7)
    assert {e.path for e in other.explain()} == {"fused"}
    torch.testing.assert_close(moved, [p.detach() for p in params], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("form", ["torch", "classic"])
def test_the_same_form_is_loaded_bit_for_bit(form: Any) -> None:
    opt, params = saved_at(form, RATES)
    other = SGD([p.detach().clone() for p in params], momentum=0.9, momentum_form=form)
    other.load_state_dict(opt.state_dict())
    for p, q in zip(params, other.param_groups[0]["params"], strict=True):
        assert torch.equal(opt.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"])


def test_the_way_to_torchs_class_leads_through_the_torch_form() -> None:
    opt, params = saved_at("classic", RATES)
    moved = [p.detach().clone() for p in params]
    between = SGD(moved, momentum=0.9)
    between.load_state_dict(opt.state_dict())
    theirs = torch.optim.SGD(moved, momentum=0.9)
    theirs.load_state_dict(between.state_dict())
    for each in opt, theirs:
        go(each, [RATES[-1]] * 2, seed=7)
    torch.testing.assert_close(moved, [p.detach() for p in params], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("there", "here"), [("torch", "classic"), ("classic", "torch")])
def test_a_rate_of_zero_converts_nothing(there: str, here: Any) -> None:
    opt, params = saved_at(there, [0.1, 0.0])
    other = SGD(params, lr=0.5, momentum=0.9, momentum_form=here)
    go(other, [0.5])
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=f"momentum_form='{there}' into an optimizer with '{here}'.*rate, which is 0"):
        other.load_state_dict(opt.state_dict())
    assert_same(other.state_dict(), before)


@pytest.mark.parametrize("there", ["torch", None])
def test_a_state_without_buffers_leaves_the_form_as_it_is(there: str | None) -> None:
    opt, params = saved_at(there, [])
    opt.param_groups[0]["lr"] = 0.0
    other = SGD(params, momentum=0.9, momentum_form="classic")
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["momentum_form"] == "classic"


def test_groups_are_converted_each_by_its_own_rate() -> None:
    a, b = (make_params([(3,), (3,)], (F64,)) for _ in range(2))
    theirs = torch.optim.SGD([{"params": a[:1], "lr": 0.1}, {"params": a[1:], "lr": torch.tensor(0.3)}], momentum=0.9)
    set_grads(a, 0)
    theirs.step()
    ours = SGD([{"params": b[:1]}, {"params": b[1:], "momentum_form": "classic"}], momentum=0.9)
    ours.load_state_dict(theirs.state_dict())
    factors = 1.0, float(torch.tensor(0.3))
    for p, q, factor in zip(a, b, factors, strict=True):
        torch.testing.assert_close(ours.state[q]["momentum_buffer"], factor * theirs.state[p]["momentum_buffer"])
    assert [group.get("momentum_form") for group in ours.param_groups] == [None, "classic"]


def test_a_copy_keeps_its_form() -> None:
    opt, _ = saved_at("classic", RATES)
    twin = copy.deepcopy(opt)
    assert twin.param_groups[0]["momentum_form"] == "classic"
    for (_, state), (_, other) in zip(opt.state.items(), twin.state.items(), strict=True):
        assert torch.equal(state["momentum_buffer"], other["momentum_buffer"])


def test_a_copy_from_before_there_was_a_choice_has_the_torch_form() -> None:
    opt, params = saved_at("torch", RATES)
    del opt.defaults["momentum_form"]
    twin = copy.deepcopy(opt)
    assert "momentum_form" not in twin.param_groups[0]
    for each in opt, twin:
        go(each, RATES)
    torch.testing.assert_close(twin.param_groups[0]["params"], params, rtol=0, atol=0)


@each_path
def test_lr_as_a_tensor_of_one_element(native: bool) -> None:
    p = torch.ones((), dtype=F64)
    opt = SGD([p], lr=torch.tensor([0.5]), momentum=0.9, momentum_form="classic")
    p.grad = torch.ones((), dtype=F64)
    with fusedopt.native() if native else torch.no_grad():
        opt.step()
    assert p.item() == opt.state[p]["momentum_buffer"].item() == 0.5


def test_an_unknown_form_is_refused() -> None:
    params, match = make_params(), "Invalid momentum_form: 'modern'; it must be 'torch' or 'classic'"
    with pytest.raises(ValueError, match=match):
        SGD(params, momentum_form="modern")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=match):
        SGD([{"params": params, "momentum_form": "modern"}])
    opt = SGD(params[:1], momentum=0.9)
    with pytest.raises(ValueError, match=match):
        opt.add_param_group({"params": params[1:], "momentum_form": "modern"})
    assert len(opt.param_groups) == 1
    opt.param_groups[0]["momentum_form"] = "modern"
    set_grads(params, 0)
    before = params[0].detach().clone()
    with pytest.raises(ValueError, match=match):
        opt.step()
    assert torch.equal(params[0], before)
    assert not opt.state
