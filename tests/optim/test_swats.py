"""SWATS: when a group switches and what it does from then on, against algorithm 1 in float64, on both paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BF16, F16, F32, F64, dtype_id
from pair import make_params
from reference import ReferenceSWATS
from swats_steps import LARGE, OPTIONS, each_path, on, phases, set_grads, switch_of
from torch import Tensor, nn

from fusedopt import SWATS

pytestmark = [pytest.mark.steps, pytest.mark.usefixtures("one_thread")]


# With each the switch comes at another step, or at none.
EPSILONS = {1e-9: None, 3e-4: 8, 5e-4: 4, 1e-2: 2}


@each_path
@pytest.mark.parametrize("dtype", [F64, F32], ids=dtype_id)
@pytest.mark.parametrize("eps", EPSILONS)
def test_it_switches_where_the_reference_does(eps: float, dtype: torch.dtype, path: str) -> None:
    ours, exact = make_params(LARGE, (dtype,)), make_params(LARGE, (F64,))
    opt, reference = SWATS(ours, eps=eps, **OPTIONS), ReferenceSWATS(exact, eps=eps, **OPTIONS)
    seen, expected = phases(opt, ours, 16, path), phases(reference, exact, 16)
    assert seen == expected
    assert (seen.index("sgd") + 1 if "sgd" in seen else None) == EPSILONS[eps]
    assert {e.path for e in opt.explain()} == {path}
    close = {"rtol": 1e-11, "atol": 1e-13} if dtype == F64 else {"rtol": 1e-4, "atol": 1e-6}
    for p, q in zip(ours, exact, strict=True):
        torch.testing.assert_close(p.double(), q, **close)
        for name, value in reference.state[q].items():
            torch.testing.assert_close(opt.state[p][name].double(), value.double(), check_device=False, **close)
    of_group = reference.param_groups[0]["of_group"]
    assert switch_of(opt)[0] == of_group["k"]
    assert switch_of(opt)[1] == pytest.approx(of_group["lambda"], rel=1e-6 if dtype == F32 else 1e-12)
    assert switch_of(opt)[2] == pytest.approx(of_group.get("Lambda", 0.0) / 0.01, rel=1e-6)


@each_path
def test_a_step_of_sgd_is_this(path: str) -> None:
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=F64))
    opt = SWATS([p], lr=0.5, betas=(0.75, 0.5), eps=100.0)
    for _ in range(2):
        p.grad = torch.ones_like(p)
        opt.step()
    assert opt.phase == ["sgd"]
    settled = switch_of(opt)[2] * 0.5
    velocity = torch.zeros(2, dtype=F64)
    for factor in (1.0, -3.0, 0.5):
        before, p.grad = p.detach().clone(), torch.tensor([factor, 2 * factor], dtype=F64)
        velocity = 0.75 * velocity + p.grad
        with on(path):
            opt.step()
        torch.testing.assert_close(p.detach(), before - 0.25 * settled * velocity, rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(opt.state[p]["momentum_buffer"], velocity)


@each_path
def test_the_projection_by_hand(path: str) -> None:
    """One weight, without memory: p is -lr g / (|g| + eps), and its projection lr^2 / (lr |g|)."""
    p = nn.Parameter(torch.zeros(1, dtype=F64))
    opt = SWATS([p], lr=0.5, betas=(0.0, 0.0), eps=0.0)
    for grad in (2.0, -4.0):
        p.grad = torch.full_like(p, grad)
        with on(path):
            opt.step()
        assert switch_of(opt)[1] == 0.5 / abs(grad)
    assert p.item() == 0
    assert opt.phase == ["adam"]  # |lambda - gamma| is 0, and that is not below an epsilon of 0


@each_path
@pytest.mark.parametrize("change", [0.5, 4.0])
def test_a_schedule_goes_on_after_the_switch(change: float, path: str) -> None:
    steps = []
    for factor in (1.0, change):
        p = nn.Parameter(torch.zeros(3, dtype=F64))
        opt = SWATS([p], lr=0.25, betas=(0.5, 0.5), eps=100.0)
        assert phases(opt, [p], 2) == ["adam", "sgd"]
        opt.param_groups[0]["lr"] *= factor
        before = p.detach().clone()
        phases(opt, [p], 1, path)
        steps.append(p.detach() - before)
    torch.testing.assert_close(steps[1], change * steps[0])


@each_path
def test_a_negative_step_size_is_none(path: str) -> None:
    """Against the gradient: of a weight that has momentum the other way."""
    p = nn.Parameter(torch.zeros(1, dtype=F64))
    opt = SWATS([p], lr=0.5, eps=100.0)
    for grad in (1.0, -0.1):
        p.grad = torch.full_like(p, grad)
        with on(path):
            opt.step()
    assert switch_of(opt)[1] < 0
    assert opt.phase == ["adam"]
    assert phases(opt, [p], 30, path)[-1] == "sgd"  # once it is positive again


@each_path
def test_where_the_step_is_orthogonal_lambda_stays(path: str) -> None:
    p = nn.Parameter(torch.zeros(4, dtype=F64))
    opt = SWATS([p], lr=0.5, eps=1e-9)
    phases(opt, [p], 1, path)
    average = switch_of(opt)[1]
    p.grad = torch.zeros_like(p)
    with on(path):
        opt.step()
    assert switch_of(opt) == [2, average, 0]


@each_path
def test_a_step_of_no_length_does_not_count(path: str) -> None:
    """A warm-up from a rate of 0 does not settle at 0."""
    p = nn.Parameter(torch.zeros(4, dtype=F64))
    opt = SWATS([p], lr=0.0, eps=100.0)
    assert phases(opt, [p], 3, path) == ["adam"] * 3
    assert switch_of(opt) == [0, 0, 0]
    opt.param_groups[0]["lr"] = 0.5
    assert phases(opt, [p], 2, path) == ["adam", "sgd"]


@each_path
def test_each_group_has_its_own_switch(path: str) -> None:
    def groups(dtype: torch.dtype) -> list[dict[str, Any]]:
        p, q, r = make_params([(300,), (20_000,), (5,)], (dtype,))
        return [{"params": [p]}, {"params": [q], "eps": 1e-2}, {"params": [r], "eps": 1e-2, "lr": 1e-4}]

    ours, exact = groups(F32), groups(F64)
    opt, reference = SWATS(ours, eps=1e-12, **OPTIONS), ReferenceSWATS(exact, eps=1e-12, **OPTIONS)
    for made in (opt, reference):
        phases(made, [p for group in made.param_groups for p in group["params"]], 6, path)
    assert opt.phase == reference.phase == ["adam", "sgd", "sgd"]
    assert [switch_of(opt, g)[0] for g in range(3)] == [6, 2, 2]
    for mine, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine["params"][0].double(), other["params"][0], rtol=1e-4, atol=1e-6)


@each_path
def test_gradients_missing_at_the_switch(path: str) -> None:
    """A parameter that has none in the first step of SGD starts from v = 0 later; one that comes late from m = 0."""
    ours, exact = make_params(LARGE, (F64,)), make_params(LARGE, (F64,))
    opt, reference = SWATS(ours, eps=5e-4, **OPTIONS), ReferenceSWATS(exact, eps=5e-4, **OPTIONS)
    seen = []
    for seed in range(10):
        without = {0: {0, 1, 2, 3}, 1: {0}, 2: {0, 3}, 5: {1}, 6: {1, 3}}.get(seed, set())
        for made, params in ((opt, ours), (reference, exact)):
            set_grads(params, seed, without)
            with on(path):
                made.step()
        assert opt.phase == reference.phase
        seen += opt.phase
        torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-13)
    assert seen.index("sgd") == 4
    assert switch_of(opt)[0] == 4  # a step without any gradient does not count


@pytest.mark.parametrize("kind", ["dtypes", "strided", "complex"])
def test_sums_are_over_all_of_a_group(kind: str) -> None:
    """Of several dtypes too; where one parameter cannot be fused, the whole group takes the plain path."""
    dtypes = {"dtypes": (F32, BF16, F64, F16), "complex": (F32, torch.complex64)}.get(kind, (F32,))
    ours, exact = make_params(LARGE, dtypes), make_params(LARGE, dtypes)
    if kind == "strided":
        for params in (ours, exact):
            params[1] = nn.Parameter(torch.zeros(80_000)[::2])
    opt = SWATS([{"params": ours}, {"params": make_params([(4,)])}], eps=1e-2, **OPTIONS)
    plain = SWATS([{"params": exact}, {"params": make_params([(4,)])}], eps=1e-2, **OPTIONS)
    for made, path in ((opt, "fused"), (plain, "torch")):
        assert phases(made, [p for group in made.param_groups for p in group["params"]], 4, path) == [
            *["adam"] * 2,
            *["sgd"] * 6,
        ]
    for group in (0, 1):
        torch.testing.assert_close(
            opt.param_groups[group]["switch"], plain.param_groups[group]["switch"], rtol=5e-3, atol=0
        )
    for p, q in zip(ours, exact, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-2, atol=1e-2)  # in half precision each path rounds in its own places
    reasons = [e.reason for e in opt.explain()]
    assert [e.path for e in opt.explain()] == ["fused" if kind == "dtypes" else "torch"] * 4 + ["fused"]
    if kind == "strided":
        assert reasons[0] == reasons[3] == "another parameter of its group is not fused"
        assert reasons[1] == "the parameter's memory is not dense"


def test_a_group_that_can_be_fused_again_is() -> None:
    params = [*make_params([(3,)]), nn.Parameter(torch.zeros(80)[::2])]
    opt, taken = SWATS(params, eps=1e-2, **OPTIONS), []
    for seed in range(4):
        set_grads(params, seed, without={1} if seed in (0, 3) else ())
        opt.step()
        taken.append([e.path for e in opt.explain()])
    assert taken == [["fused", "none"], ["torch", "torch"], ["torch", "torch"], ["fused", "none"]]
    assert switch_of(opt)[0] == 2


@each_path
def test_the_projection_sees_clipped_gradients(path: str) -> None:
    params, others = make_params(LARGE, (F64,)), make_params(LARGE, (F64,))
    opt = SWATS(params, eps=1e-9, max_grad_norm=1.0, weight_decay=0.1, **OPTIONS)
    plain = SWATS(others, eps=1e-9, weight_decay=0.1, **OPTIONS)
    for seed in range(4):
        set_grads(params, seed)
        set_grads(others, seed)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        with on(path):
            opt.step()
        plain.step()
    assert switch_of(opt)[1] == pytest.approx(switch_of(plain)[1], rel=1e-9)


@each_path
def test_a_gradient_that_is_not_finite_ends_in_adam(path: str) -> None:
    params = make_params()
    opt = SWATS(params, eps=100.0, **OPTIONS)
    set_grads(params, 0)
    params[1].grad[0, 0] = torch.nan
    with on(path):
        opt.step()
    assert phases(opt, params, 3, path) == ["adam"] * 3
    assert bool(params[0].isfinite().all())


@each_path
@pytest.mark.parametrize("lr", [torch.tensor(0.25), torch.tensor([0.25])], ids=["scalar", "one-element"])
def test_lr_as_a_tensor(lr: Tensor, path: str) -> None:
    params, others = make_params(LARGE), make_params(LARGE)
    opt, plain = SWATS(params, lr=lr, eps=100.0), SWATS(others, lr=0.25, eps=100.0)
    for made, its in ((opt, params), (plain, others)):
        assert phases(made, its, 4, path)[-1] == "sgd"
    assert switch_of(opt) == switch_of(plain)
    assert all(map(torch.equal, params, others))


def test_the_parts_of_a_complex_weight_are_two_weights() -> None:
    z, x = nn.Parameter(torch.zeros(2, dtype=torch.complex128)), nn.Parameter(torch.zeros(4, dtype=F64))
    complex_opt, real_opt = (SWATS([p], lr=0.5, eps=100.0) for p in (z, x))
    for seed in range(4):
        set_grads([x], seed)
        z.grad = torch.view_as_complex(x.grad.reshape(2, 2))
        complex_opt.step()
        real_opt.step()
        torch.testing.assert_close(torch.view_as_real(z.detach()).flatten(), x.detach())
    assert complex_opt.phase == real_opt.phase == ["sgd"]


def test_bytes_of_either_phase() -> None:
    params = make_params([(100,)])
    opt = SWATS(params, eps=100.0)
    phases(opt, params, 1)
    assert opt.bytes_per_step() == 7 * 400
    phases(opt, params, 1)
    assert opt.bytes_per_step() == 5 * 400


def test_bytes_after_a_group_was_removed() -> None:
    params = make_params([(100,), (20,)])
    opt = SWATS([{"params": [p]} for p in params], eps=1e-30)
    phases(opt, params, 1)
    removed = opt.param_groups.pop()
    with pytest.raises(RuntimeError, match="a group was removed since the last step"):
        opt.bytes_per_step()
    phases(opt, params, 1)
    assert opt.bytes_per_step() == 7 * 400
    opt.param_groups.append(removed)
    assert opt.bytes_per_step() == 7 * 400


def test_it_descends_in_both_phases() -> None:
    """A bowl: SGD goes on, at the rate that it was given, to where Adam's steps of fixed length cannot come to rest."""
    p = nn.Parameter(torch.tensor([3.0, -2.0], dtype=F64))
    opt = SWATS([p], lr=0.1, betas=(0.9, 0.9), eps=5e-3)
    for _ in range(400):
        p.grad = p.detach().clone()
        opt.step()
    assert opt.phase == ["sgd"]
    assert p.abs().max().item() < 1e-6
