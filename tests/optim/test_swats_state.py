"""SWATS around the switch: state_dicts, copies and checkpoints on either side of it, overflows,
refusals, threads and autograd."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import DTYPES, F64, dtype_id
from pair import make_params
from swats_steps import LARGE, OPTIONS, each_path, on, phases, set_grads, switch_of
from torch import Tensor, nn

from fusedopt import SWATS, AdamW
from fusedopt.training import Checkpoint

pytestmark = [pytest.mark.steps, pytest.mark.usefixtures("one_thread")]


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


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("overflow", [0, 1, 3])
def test_an_overflow_leaves_the_decision(overflow: int, fused: bool) -> None:
    params, others = make_params(LARGE), make_params(LARGE)
    opt, plain = (SWATS(made, eps=5e-4, fused=fused, **OPTIONS) for made in (params, others))
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
    with pytest.raises((ValueError, RuntimeError), match=r"3 float64 numbers|scalar type Double"):
        opt.step()
    assert all(map(torch.equal, params, before))


@pytest.mark.parametrize("lr", [torch.ones(2, dtype=F64), torch.ones(3, dtype=F64)], ids=str)
def test_lr_of_several_numbers_is_no_switch(lr: Tensor) -> None:
    params = make_params()
    for cls in (SWATS, AdamW):
        opt = cls(params)
        set_grads(params, 0)
        opt.param_groups[0]["lr"] = lr
        # In the words of whichever of torch's operators comes to it first.
        words = "invalid for input of size|not Tensor|must match|same device"
        with pytest.raises((RuntimeError, TypeError), match=words):
            opt.step()


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


@pytest.mark.below_python
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


def test_loading_leaves_an_earlier_state_dict_alone() -> None:
    params = make_params()
    opt = SWATS(params, eps=100.0)
    fresh = copy.deepcopy(opt.state_dict())
    phases(opt, params, 3)
    snapshot = opt.state_dict()
    assert opt.phase == ["sgd"]
    opt.load_state_dict(fresh)
    assert opt.phase == ["adam"]
    opt.load_state_dict(snapshot)
    assert opt.phase == ["sgd"]


@each_path
def test_goes_on_from_adam(path: str) -> None:
    params = make_params()
    adam = torch.optim.Adam(params)
    set_grads(params, 0)
    adam.step()
    opt = SWATS(params)
    opt.load_state_dict(adam.state_dict())
    opt.param_groups[0]["eps"] = 100.0
    with on(path):
        for step in range(1, 4):
            set_grads(params, step)
            opt.step()
    assert opt.phase == ["sgd"]
    assert {int(state["step"]) for state in opt.state.values()} == {4}


@pytest.mark.parametrize("switch", [torch.zeros(1, dtype=F64), torch.zeros(3), 5.0])
def test_a_malformed_switch_is_refused_before_anything_changes(switch: object) -> None:
    params = make_params()
    opt = SWATS([{"params": params[:1]}, {"params": params[1:]}], eps=100.0)
    state = copy.deepcopy(opt.state_dict())
    phases(opt, params, 3)
    state["param_groups"][1]["switch"] = switch
    with pytest.raises(ValueError, match="group 1: switch must be a float64 tensor"):
        opt.load_state_dict(state)
    assert opt.phase == ["sgd", "sgd"]
    assert {int(state["step"]) for state in opt.state.values()} == {3}
