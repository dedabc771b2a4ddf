"""SWATS: when a group switches and what it does from then on, against algorithm 1 in float64, on both paths."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BF16, DTYPES, F16, F32, F64, dtype_id
from reference import ReferenceSWATS
from test_contract import make_params
from torch import Tensor, nn

from fusedopt import SWATS, AdamW, native
from fusedopt.training import Checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
each_path = pytest.mark.parametrize("path", ["fused", "torch"])
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


# With each the switch comes at another step, or at none.
EPSILONS = {1e-9: None, 3e-4: 8, 5e-4: 4, 1e-2: 2}
OPTIONS = {"lr": 0.01, "betas": (0.9, 0.99)}


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


def reloaded(opt: SWATS, params: list[Tensor], make: Callable[[list[Tensor]], SWATS]) -> tuple[SWATS, list[Tensor]]:
    file = io.BytesIO()
    torch.save({"params": params, "optimizer": opt.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    other = make(loaded["params"])
    other.load_state_dict(loaded["optimizer"])
    return other, loaded["params"]


def copied(opt: SWATS, params: list[Tensor], make: Any) -> tuple[SWATS, list[Tensor]]:
    other = copy.deepcopy(opt)
    return other, other.param_groups[0]["params"]


def pickled(opt: SWATS, params: list[Tensor], make: Any) -> tuple[SWATS, list[Tensor]]:
    other = pickle.loads(pickle.dumps(opt))
    return other, other.param_groups[0]["params"]


@each_path
@pytest.mark.parametrize("way", [reloaded, copied, pickled])
@pytest.mark.parametrize("at", [0, 2, 3, 4, 5, 8])
def test_resumed_on_either_side_of_the_switch(at: int, way: Any, path: str) -> None:
    """The switch is at the end of step 4; the run that goes on does not disturb the one it was copied from."""

    def make(params: list[Tensor]) -> SWATS:
        return SWATS(params, eps=5e-4, weight_decay=0.01, **OPTIONS)

    params = make_params(LARGE)
    opt = make(params)
    runs = [(opt, params)]
    for seed in range(10):
        if seed == at:
            runs.append(way(opt, params, make))
        for run, its_params in runs:
            set_grads(its_params, seed)
            with on(path):
                run.step()
        assert opt.phase == ["sgd" if seed >= 3 else "adam"]
    for (run, its_params), other in zip(runs, reversed(runs), strict=True):
        assert switch_of(run) == switch_of(other[0])
        assert all(map(torch.equal, its_params, other[1]))
        for p, q in zip(its_params, other[1], strict=True):
            torch.testing.assert_close(run.state[p], other[0].state[q], rtol=0, atol=0)


@pytest.mark.parametrize("at", [2, 6])
def test_a_checkpoint_holds_the_phase(tmp_path: Any, at: int) -> None:
    def make() -> tuple[nn.Module, SWATS]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, SWATS(model.parameters(), eps=1e-2, **OPTIONS)

    results = []
    for interrupted in (False, True):
        model, opt = make()
        for seed in range(10):
            if interrupted and seed == at:
                Checkpoint(tmp_path, model=model, optimizer=opt).save(epoch=0, step=seed)
                model, opt = make()
                assert Checkpoint(tmp_path, model=model, optimizer=opt).load().step == at
            set_grads(list(model.parameters()), seed)
            opt.step()
        results.append([*(p.detach() for p in model.parameters()), opt.param_groups[0]["switch"]])
    assert all(map(torch.equal, *results))
    assert opt.phase == ["sgd"]


def test_a_state_of_before_the_switch_switches_back() -> None:
    """And in place: what a CUDA graph has captured goes on with what was loaded."""
    params = make_params()
    opt = SWATS(params, eps=1e-2, **OPTIONS)
    early = copy.deepcopy(opt.state_dict())
    assert phases(opt, params, 3)[-1] == "sgd"
    switch = opt.param_groups[0]["switch"]
    opt.load_state_dict(early)
    assert opt.param_groups[0]["switch"] is switch
    assert switch_of(opt) == [0, 0, 0]
    del early["param_groups"][0]["switch"]  # as another class saves it
    phases(opt, params, 3)
    opt.load_state_dict(early)
    assert opt.phase == ["adam"]
    assert early["param_groups"][0].keys() == opt.state_dict()["param_groups"][0].keys() - {"switch"}


@pytest.mark.parametrize("overflow", [0, 1, 3])
def test_an_overflow_leaves_the_decision(overflow: int) -> None:
    params, others = make_params(LARGE), make_params(LARGE)
    opt, plain = (SWATS(made, eps=5e-4, **OPTIONS) for made in (params, others))
    scaler = torch.amp.GradScaler(params[0].device.type, init_scale=4.0, growth_interval=1000)
    scaler.scale(torch.ones(1))
    for seed in range(8):
        set_grads(params, seed, scale=scaler.get_scale())
        if seed == overflow:
            params[1].grad[-1] = float("inf")
        before = switch_of(opt)
        scaler.step(opt)
        scaler.update()
        if seed == overflow:
            assert switch_of(opt) == before
            continue
        set_grads(others, seed)
        plain.step()
        assert switch_of(opt) == switch_of(plain)
    assert opt.phase == plain.phase == ["sgd"]
    assert all(map(torch.equal, params, others))


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


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_any_number_of_threads_decides_alike(threads: None, dtype: torch.dtype) -> None:
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        params = make_params([(200_003,), (70_000,), (5,)], (dtype,))
        opt = SWATS(params, eps=1e-2, **OPTIONS)
        phases(opt, params, 3)
        results.append([*params, opt.param_groups[0]["switch"]])
    assert opt.phase == ["sgd"]
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))


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


@pytest.mark.parametrize("eps", [1e-9, 100.0])
def test_differentiable_over_both_phases(eps: float) -> None:
    """By finite differences, in the gradients and in a rate set after the switch; what is decided is constant."""

    def train(x: Tensor, lr: Tensor) -> Tensor:
        opt = SWATS([torch.ones(2, dtype=F64)], lr=0.1, betas=(0.9, 0.99), eps=eps, differentiable=True)
        p = torch.ones(2, dtype=F64) * 1.0
        opt.param_groups[0]["params"] = [p]
        for i, factor in enumerate((1.0, 2.0, -1.0, 3.0)):
            p.grad = factor * (x if i > 1 or eps < 1 else torch.ones_like(x))  # the switch is at the second
            if i == 2:
                opt.param_groups[0]["lr"] = lr
            opt.step()
        assert opt.phase == ["sgd" if eps > 1 else "adam"]
        return p

    x = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(train, (x, torch.tensor(0.5, dtype=F64, requires_grad=True)))


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


@each_path
@pytest.mark.parametrize("switched", [False, True])
@pytest.mark.parametrize("name", ["step", "exp_avg", "exp_avg_sq", "momentum_buffer"])
def test_a_missing_state_is_refused(name: str, switched: bool, path: str) -> None:
    params = make_params()
    opt = SWATS([{"params": params[:1]}, {"params": params[1:]}], eps=100.0 if switched else 1e-9)
    phases(opt, params, 2)
    set_grads(params, 2)
    del opt.state[params[2]][name]
    before = [p.detach().clone() for p in params], [switch_of(opt, g) for g in (0, 1)]
    with pytest.raises(KeyError, match=name), on(path):
        opt.step()
    if path == "fused":
        assert all(map(torch.equal, params, before[0]))
        assert [switch_of(opt, g) for g in (0, 1)] == before[1]


@pytest.mark.parametrize("value", [torch.zeros(2, dtype=F64), torch.zeros(3)], ids=["size", "dtype"])
def test_another_switch_is_refused(value: Tensor) -> None:
    params = make_params()
    opt = SWATS(params)
    phases(opt, params, 1)
    before = [p.detach().clone() for p in params]
    opt.param_groups[0]["switch"] = value
    with pytest.raises((ValueError, RuntimeError), match=r"three float64 numbers|scalar type Double"):
        opt.step()
    assert all(map(torch.equal, params, before))


@pytest.mark.parametrize("lr", [torch.ones(2, dtype=F64), torch.ones(3, dtype=F64)], ids=str)
def test_lr_of_several_numbers_is_no_switch(lr: Tensor) -> None:
    params = make_params()
    for cls in (SWATS, AdamW):
        opt = cls(params)
        set_grads(params, 0)
        opt.param_groups[0]["lr"] = lr
        with pytest.raises(RuntimeError, match="cannot be converted to Scalar"):
            opt.step()


def test_bytes_of_either_phase() -> None:
    params = make_params([(100,)])
    opt = SWATS(params, eps=100.0)
    phases(opt, params, 1)
    assert opt.bytes_per_step() == 7 * 400
    phases(opt, params, 1)
    assert opt.bytes_per_step() == 5 * 400


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
        ({"max_grad_norm": -1.0}, "Invalid max_grad_norm"),
    ],
    ids=str,
)
def test_value_that_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SWATS(make_params(), **kwargs)


def test_it_descends_in_both_phases() -> None:
    """A bowl: SGD goes on, at the rate that it was given, to where Adam's steps of fixed length cannot come to rest."""
    p = nn.Parameter(torch.tensor([3.0, -2.0], dtype=F64))
    opt = SWATS([p], lr=0.1, betas=(0.9, 0.9), eps=5e-3)
    for _ in range(400):
        p.grad = p.detach().clone()
        opt.step()
    assert opt.phase == ["sgd"]
    assert p.abs().max().item() < 1e-6
