"""Bugs that other fused optimizers had, one test each, and a few that this one had."""

from __future__ import annotations

import gc
import weakref

import gpu
import pytest
import torch
from cases import BY_NAME, Case
from pair import Pair, counts_steps, each_class, make_params, make_twin, one_by_one, set_grads
from torch import Tensor, nn
from torch.optim import Optimizer

import fusedopt

pytestmark = [pytest.mark.steps, pytest.mark.on_gpu]


@each_class
@pytest.mark.parametrize("late", [0, 1, 2])
def test_first_gradient_late(case: Case, late: int) -> None:
    pair = Pair(case)
    for i in range(3):
        pair.step(i, without={late})
    assert pair.ours.explain()[late].path == "none"
    for i in range(3, 6):
        pair.step(i)


@each_class
@pytest.mark.parametrize("empty", [{0}, {1}, {3}, {0, 1}, {1, 2}, {2, 3}, {0, 3}, {0, 1, 2, 3}])
def test_tensors_of_zero_elements_anywhere(case: Case, empty: set[int]) -> None:
    pair = Pair(case, [(0, 3) if i in empty else (5,) for i in range(4)])
    for i in range(3):
        pair.step(i)
    if counts_steps(case):
        assert all(pair.ours.state[p]["step"] == 3 for p in pair.params[0])


@each_class
def test_several_dtypes_in_one_group(case: Case) -> None:
    dtypes = torch.float32, torch.float64, torch.bfloat16, torch.float16
    eps = {"eps": 1e-3} if "eps" in case.make(make_params()).defaults else {}
    pair = Pair(case, [(5, 7)] * 4 + [(3,)] * 4, dtypes, **eps)
    for i in range(2):
        for opt, params in pair:
            set_grads(params, i)
            opt.step()
        for p, q in zip(*pair.params, strict=True):
            loose = {"rtol": 2e-2, "atol": 2e-2} if p.dtype.itemsize == 2 else {}
            torch.testing.assert_close(p, q, **loose)
    assert {e.path for e in pair.ours.explain()} == {"fused"}
    assert all(pair.ours.state[p][name].dtype == p.dtype for p in pair.params[0] for name in case.states)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("numel", [1, 33, 64, 1000])
@pytest.mark.parametrize("name", ["sgd", "sgd-momentum"])
def test_half_precision_sgd_updates_every_element(name: str, numel: int, dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.ones(numel, dtype=dtype))
    opt = BY_NAME[name].make([p], lr=0.5)
    p.grad = torch.ones_like(p)
    opt.step()
    assert bool((p == 0.5).all())


@each_class
def test_parameter_without_gradient_is_left_alone(case: Case) -> None:
    pair = Pair(case)
    pair.step(0)
    before = [p.detach().clone() for p in pair.params[0]]
    pair.step(1, without={1})
    pair.step(2, without={0, 1})
    assert torch.equal(before[1], pair.params[0][1])
    if counts_steps(case):
        assert [pair.ours.state[p]["step"].item() for p in pair.params[0]] == [2, 1, 3]
    pair.step(3)


@pytest.mark.below_python
@each_class
def test_compiled_training_step(case: Case) -> None:
    pair = Pair(case, [(4, 3), (3,)])
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), device="cpu").to(gpu.TEST_DEVICE)
    for opt, (weight, bias) in pair:

        def train(opt: Optimizer = opt, weight: Tensor = weight, bias: Tensor = bias) -> None:
            opt.zero_grad()
            loss = (x @ weight + bias).square().mean()
            loss.backward()
            opt.step()

        step = torch.compile(train, backend="eager") if opt is pair.ours else train
        for _ in range(3):
            step()
    pair.compare()
    assert {e.path for e in pair.ours.explain()} == {"fused"}


@each_class
def test_an_optimizer_in_a_reference_cycle_is_freed(case: Case) -> None:
    params = make_params()
    set_grads(params, 0)
    opt = case.make(params)
    opt.step()
    params[0].optimizer = opt  # type: ignore[attr-defined]
    alive = weakref.ref(opt)
    del params, opt
    gc.collect()
    assert alive() is None


@each_class
def test_channels_last_parameter_with_contiguous_gradient(case: Case) -> None:
    pair = Pair(case, [(4, 3, 5, 2)])
    ours = pair.params[0][0]
    ours.data = ours.data.to(memory_format=torch.channels_last)
    pair.ours = case.make(pair.params[0])
    for seed in range(3):
        for opt, params in pair:
            set_grads(params, seed)
            if seed == 1:
                params[0].grad = params[0].grad.contiguous(memory_format=torch.channels_last)
            elif seed == 2:  # neither's layout, with holes
                holes = torch.zeros(2, 5, 3, 4 * 3).transpose(0, 3)[::3].transpose(1, 2)
                params[0].grad = holes.copy_(params[0].grad)
            opt.step()
        pair.compare()
    assert pair.ours.explain()[0].path == "fused"
    assert all(pair.ours.state[ours][name].stride() == ours.stride() for name in case.states)


@each_class
def test_gradients_are_never_written(case: Case) -> None:
    params = make_params()
    set_grads(params, 0)
    grads = [(p.grad, p.grad.clone(), p.grad._version) for p in params]
    opt = case.make(params, max_grad_norm=0.1)
    for _ in range(2):
        opt.grad_scale, opt.found_inf = torch.tensor(8.0), torch.tensor(0.0)  # type: ignore[attr-defined]
        opt.step()
    for p, (grad, value, version) in zip(params, grads, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, value)
        assert grad._version == version


@each_class
def test_step_counts_are_per_parameter_and_dtype(case: Case) -> None:
    if not counts_steps(case):
        case = BY_NAME["adam"]
    params = make_params([(4,)] * 4, (torch.float32, torch.float64))
    opt = case.make(params)
    for i in range(4):
        set_grads(params, i, without=range(i))
        opt.step()
    steps = [opt.state[p]["step"] for p in params]
    assert [step.item() for step in steps] == [1, 2, 3, 4]
    assert len({step.data_ptr() for step in steps}) == 4


@each_class
def test_groups_without_gradients_or_parameters(case: Case) -> None:
    pair = Pair(case)
    for opt, _ in pair:
        opt.add_param_group({"params": []})
        opt.add_param_group({"params": make_params([(2,)])})
    for i in range(3):
        pair.step(i)
    opt = case.make(make_params())
    opt.step()
    assert {e.path for e in opt.explain()} == {"none"}


def test_amsgrad_is_not_ignored() -> None:
    p = nn.Parameter(torch.ones(3))
    opt = fusedopt.Adam([p], amsgrad=True, betas=(0.9, 0.5))
    for grad in 10.0, 0.1, 0.1:
        p.grad = torch.full_like(p, grad)
        opt.step()
    torch.testing.assert_close(opt.state[p]["max_exp_avg_sq"], torch.full((3,), 50.0))
    assert bool((opt.state[p]["exp_avg_sq"] < 20).all())


def test_nesterov_leaves_the_gradient_alone() -> None:
    p = nn.Parameter(torch.ones(70))
    opt = fusedopt.SGD([p], lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    for _ in range(2):
        p.grad = torch.full_like(p, 3.0)
        opt.step()
        assert bool((p.grad == 3).all())


@pytest.mark.parametrize("numel", [7, 100_003])
def test_a_view_with_an_odd_offset_writes_only_its_own_elements(numel: int) -> None:
    buffer = torch.ones(numel + 10)
    p = nn.Parameter(buffer[5:-5])
    opt = fusedopt.AdamW([p], lr=0.1)
    p.grad = torch.ones(numel + 10)[3:-7]
    opt.step()
    assert bool((buffer[:5] == 1).all())
    assert bool((buffer[-5:] == 1).all())
    assert bool((buffer[5:-5] != 1).all())


def test_a_refused_first_step_does_not_make_the_next_one_a_second() -> None:
    params = make_params([(4,), (4,)])
    opt = fusedopt.SGD(params, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1)
    set_grads(params, 0)
    dense = params[1].grad
    params[1].grad = dense.to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    params[1].grad = dense
    expected = [p.grad + 0.1 * p.detach() for p in params]
    opt.step()
    torch.testing.assert_close([opt.state[p]["momentum_buffer"] for p in params], expected)


def test_states_that_share_a_step_count_advance_as_torchs() -> None:
    pair = Pair(BY_NAME["adamw"], [(4,), (4,)], **one_by_one(BY_NAME["adamw"]))
    pair.step(0)
    for opt, (first, second) in pair:
        opt.state[second]["step"] = opt.state[first]["step"]
    pair.step(1)
    pair.step(2)


@pytest.mark.parametrize("order", ["ab", "ba", "both", "a-then-c"])
@pytest.mark.parametrize("name", ["sgd-nesterov-decay", "adam-amsgrad-decay", "adagrad-lr-decay-decay"])
def test_shared_memory_found_whenever_gradients_appear(name: str, order: str) -> None:
    def make() -> list[Tensor]:
        memory = torch.arange(1.0, 21.0)
        return [
            nn.Parameter(memory[:8]),
            nn.Parameter(memory[8:10]),
            nn.Parameter(memory[4:10]),
            nn.Parameter(memory[12:]),
        ]

    without = {"ab": [{2}, {0}, ()], "ba": [{0}, {2}, ()], "both": [(), {0}, ()], "a-then-c": [{1, 2}, {0, 2}, {0}]}
    case, pair = BY_NAME[name], Pair(BY_NAME[name])
    pair.params = make(), make()
    alike = one_by_one(case)
    pair.ours, pair.theirs = case.make(pair.params[0], **alike), make_twin(case, pair.params[1], **alike)
    for i, missing in enumerate(without[order] * 2):
        pair.step(i, missing)
    paths = [e.path for e in pair.ours.explain()]
    assert paths == (
        ["torch", "torch", "torch", "fused"] if order != "a-then-c" else ["none", "torch", "torch", "fused"]
    )


@pytest.mark.parametrize("change", ["tied", "grown"])
def test_memory_shared_later(change: str) -> None:
    pair = Pair(BY_NAME["sgd-decay"], [(6,), (4,)], **one_by_one(BY_NAME["sgd-decay"]))
    for _, params in pair:
        memory = torch.arange(1.0, 11.0)
        params[0].data, params[1].data = memory[:6], memory[6:]
    for i in range(3):
        pair.step(i)
    assert {e.path for e in pair.ours.explain()} == {"fused"}
    for opt, params in pair:
        opt.zero_grad()
        if change == "tied":
            params[0].data = params[1].data
        else:  # at the same address
            params[0].data = torch.as_strided(params[0].data, (8,), (1,))
    for i in range(3):
        pair.step(i)
    assert {e.path for e in pair.ours.explain()} == {"torch"}
    for _, params in pair:
        params[0].data = params[0].data.clone()
    pair.step(7)
    assert {e.path for e in pair.ours.explain()} == {"fused"}


def test_nan_learning_rate_is_accepted_where_torch_does() -> None:
    pair = Pair(BY_NAME["sgd"], [(4,)], lr=float("nan"))
    for opt, params in pair:
        set_grads(params, 0)
        opt.step()
        assert bool(params[0].isnan().all())
