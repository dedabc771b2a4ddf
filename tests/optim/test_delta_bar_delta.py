"""Delta-bar-delta's gains: worked out by hand, at zeros and bounds, and on the paths that are not fused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from cases import DTYPES, F16, F64, dtype_id
from pair import make_params, set_grads
from reference import ReferenceDeltaBarDelta
from torch import Tensor, nn

from fusedopt import SGD, DeltaBarDelta, native

pytestmark = pytest.mark.usefixtures("one_thread")
each_path = pytest.mark.parametrize("path", ["fused", "torch"])


def on(path: str) -> Any:
    return native() if path == "torch" else contextlib.nullcontext()


def run(opt: DeltaBarDelta, p: Tensor, grads: list[float], path: str = "fused") -> list[float]:
    """The first weight's gain after each step."""
    gains = []
    for grad in grads:
        p.grad = torch.full_like(p, grad)
        with on(path):
            opt.step()
        assert opt.explain()[0].path == path
        gains.append(opt.state[p]["gain"][0].item())
    return gains


@each_path
@pytest.mark.parametrize("cls", [DeltaBarDelta, ReferenceDeltaBarDelta])
def test_by_hand(cls: type[torch.optim.Optimizer], path: str) -> None:
    """Weights with gradients that agree, that turn, and of all signs: gains of 1, then + 0.25 or * 0.75."""
    p = torch.zeros(3, dtype=F64)
    opt = cls([p], lr=0.5, beta=0.25)
    grads = [[1.0, 1.0, -1.0], [2.0, -2.0, -1.0], [1.0, 1.0, 1.0]]
    gains = [[1.0, 1.0, 1.0], [1.25, 0.75, 1.25], [1.5, 0.5625, 0.9375]]
    position = torch.zeros(3, dtype=F64)
    for grad, gain in zip(grads, gains, strict=True):
        p.grad = torch.tensor(grad, dtype=F64)
        with on(path):
            opt.step()
        position -= 0.5 * torch.tensor(gain) * p.grad
        assert opt.state[p]["gain"].tolist() == gain
        assert opt.state[p]["grad_sign"].tolist() == [1.0 if g > 0 else -1.0 for g in grad]
        assert p.tolist() == position.tolist()


@each_path
def test_a_gradient_of_zero_agrees_with_none(path: str) -> None:
    p = torch.zeros(1, dtype=F64)
    opt = DeltaBarDelta([p], lr=1.0, beta=0.25)
    assert run(opt, p, [0.0, 1.0, 0.0, 0.0, -1.0, -1.0, 1.0], path) == [1, 1, 1, 1, 1, 1.25, 0.9375]


@each_path
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_gains_stay_within_their_bounds(path: str, dtype: torch.dtype) -> None:
    p = torch.zeros(40, dtype=dtype)
    opt = DeltaBarDelta([p], lr=2.0**-6, beta=0.5, min_gain=0.25, max_gain=2.0)
    assert run(opt, p, [1.0] * 5, path) == [1, 1.5, 2, 2, 2]
    assert run(opt, p, [-1.0, 1.0, -1.0, 1.0, 1.0], path) == [1, 0.5, 0.25, 0.25, 0.75]


@each_path
@pytest.mark.parametrize("grad", [1e-30, 1e-44])
def test_gradients_whose_product_is_zero(grad: float, path: str) -> None:
    p = torch.zeros(33)
    opt = DeltaBarDelta([p], lr=1.0, beta=0.25)
    assert run(opt, p, [grad, grad, -grad], path) == [1, 1.25, 0.9375]


def test_signs_survive_where_float16_would_not_hold_the_unscaled_gradient() -> None:
    p = torch.zeros(5, dtype=F16)
    opt = DeltaBarDelta([p], lr=1.0, beta=0.25, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(torch.ones(1))
    for sign in (1, 1, -1):
        p.grad = torch.full_like(p, sign * 1e-4)
        scaler.step(opt)
        scaler.update()
    assert opt.state[p]["gain"].tolist() == [0.9375] * 5


def test_a_step_with_an_overflow_leaves_the_signs() -> None:
    p = nn.Parameter(torch.zeros(2))
    opt = DeltaBarDelta([p], lr=1.0, beta=0.25)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.ones(1))
    for grad in (1.0, float("inf"), 1.0):
        p.grad = torch.full_like(p, grad)
        scaler.step(opt)
        scaler.update()
    assert opt.state[p]["gain"].tolist() == [1.25] * 2


@each_path
def test_clipping_and_maximizing_do_not_change_the_gains(path: str) -> None:
    grads = [1.0, 2.0, -3.0, -1.0, -0.5]
    gains = []
    for options in ({}, {"max_grad_norm": 0.1}, {"maximize": True}, {"momentum": 0.9}):
        p = torch.zeros(2, dtype=F64)
        gains.append(run(DeltaBarDelta([p], lr=0.1, **options), p, grads, path))
    assert gains[0] == gains[1] == gains[2] == gains[3] == pytest.approx([1, 1.05, 0.9975, 1.0475, 1.0975])


def test_weight_decay_counts_for_the_sign() -> None:
    """The gradient of 1 is outweighed by the decay of -2 in the second step."""
    p = torch.zeros(1, dtype=F64)
    opt = DeltaBarDelta([p], lr=4.0, beta=0.25, weight_decay=0.5)
    assert run(opt, p, [1.0, 1.0]) == [1, 0.75]
    assert p.item() == -4 + 4 * 0.75


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.125}], ids=str)
def test_native_is_the_same_algorithm(options: dict[str, Any]) -> None:
    params, others = make_params(dtypes=(F64,)), make_params(dtypes=(F64,))
    opt, reference = DeltaBarDelta(params, lr=0.1, **options), ReferenceDeltaBarDelta(others, lr=0.1, **options)
    for i in range(6):
        set_grads(params, i)
        set_grads(others, i)
        with native():
            opt.step()
        reference.step()
    torch.testing.assert_close(params, others, rtol=1e-13, atol=1e-14)
    for p, q in zip(params, others, strict=True):
        assert list(opt.state[p]) == list(reference.state[q])
        torch.testing.assert_close(dict(opt.state[p]), dict(reference.state[q]), rtol=1e-13, atol=1e-14)


def test_the_parts_of_a_complex_weight_have_a_gain_each() -> None:
    z = torch.zeros(1, dtype=torch.complex128)
    x = torch.zeros(2, dtype=F64)
    complex_opt, real_opt = (DeltaBarDelta([p], lr=0.5, beta=0.25, momentum=0.5) for p in (z, x))
    for grad in ([1.0, 1.0], [1.0, -1.0], [1.0, -1.0]):
        x.grad = torch.tensor(grad, dtype=F64)
        z.grad = torch.view_as_complex(x.grad).reshape(1)
        complex_opt.step()
        real_opt.step()
        assert torch.view_as_real(z)[0].tolist() == x.tolist()
    assert complex_opt.state[z]["gain"].tolist() == [1.5 + 1.0j]
    assert complex_opt.explain()[0].path == "torch"


@each_path
@pytest.mark.parametrize("lr", [torch.tensor(0.5), torch.tensor([0.5])], ids=["scalar", "one-element"])
def test_lr_as_a_tensor(lr: Tensor, path: str) -> None:
    p, q = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
    for p_, opt in ((p, DeltaBarDelta([p], lr=lr)), (q, DeltaBarDelta([q], lr=0.5))):
        p_.grad = torch.ones(())
        with on(path):
            opt.step()
    assert p.item() == q.item() == 0.5


def test_differentiable_over_several_steps() -> None:
    """By finite differences, in the gradients and in the rate: what a later step overwrites must have been copied."""

    def train(x: Tensor, lr: Tensor) -> Tensor:
        opt = DeltaBarDelta([torch.ones(2, dtype=F64)], lr=0.1, momentum=0.9, differentiable=True)
        p = torch.ones(2, dtype=F64) * 1.0
        opt.param_groups[0]["params"], opt.param_groups[0]["lr"] = [p], lr
        for factor in (1.0, 2.0, -1.0):
            p.grad = factor * x**2
            opt.step()
        return p

    x = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(train, (x, torch.tensor(0.5, dtype=F64, requires_grad=True)))


@pytest.mark.parametrize("name", ["gain", "grad_sign"])
def test_a_missing_state_is_refused(name: str) -> None:
    params = make_params()
    opt = DeltaBarDelta(params, lr=0.1)
    set_grads(params, 0)
    opt.step()
    del opt.state[params[1]][name]
    before = [p.detach().clone() for p in params]
    for path in "fused", "torch":
        with pytest.raises(KeyError, match=name), on(path):
            opt.step()
        if path == "fused":
            assert all(map(torch.equal, params, before))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"beta": 1.0}, "Invalid beta value: 1.0"),
        ({"beta": -0.1}, "Invalid beta value: -0.1"),
        ({"momentum": -0.1}, "Invalid momentum value: -0.1"),
        ({"min_gain": 1.1}, "Invalid min_gain and max_gain: 1.1, 10.0; gains start at 1"),
        ({"min_gain": -0.1}, "Invalid min_gain and max_gain: -0.1"),
        ({"max_gain": 0.9}, "Invalid min_gain and max_gain: 0.01, 0.9"),
        ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
        ({"max_grad_norm": -1.0}, "Invalid max_grad_norm"),
    ],
    ids=str,
)
def test_value_that_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeltaBarDelta(make_params(), **({"lr": 0.1} | kwargs))


def test_it_finds_each_weights_rate() -> None:
    """A valley, curved 100 times as much across as along: far below what the same rate reaches without gains."""
    curvature = torch.tensor([1.0, 0.01], dtype=F64)
    losses = []
    for cls in (SGD, DeltaBarDelta):
        p = torch.ones(2, dtype=F64)
        opt = cls([p], lr=0.5)
        for _ in range(200):
            p.grad = curvature * p
            opt.step()
        losses.append(float((curvature * p * p).sum()) / 2)
    assert losses[1] < 0.01 * losses[0]
