"""Steps within the backward pass: the results of ordinary steps, with few gradients at a time."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from backward_steps import Net, adam, assert_equal, assert_same, backward, pair, train
from cases import BF16, F32, LOOPS, Case
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import fusedopt
from fusedopt import step_in_backward

# Without the pretended GPU, which is not seen where autograd runs hooks: a build for the executor steps on its kernels.
pytestmark = [pytest.mark.steps, pytest.mark.usefixtures("one_thread"), pytest.mark.below_python]
CASES = [case for case in LOOPS if case.max_grad_norm is None and case.cls._sum_scope != "group"]
TORCHS = sorted(set(torch.optim.__all__) & {"Adafactor", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD"})
TORCHS += ["Muon", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
def test_results_are_those_of_ordinary_steps(case: Case, dtype: torch.dtype) -> None:
    options = {"state_dtype": F32} if dtype == BF16 and case.states else {}
    model, optimizer, other, its = pair(lambda groups: case.make(groups, **options), dtype=dtype)
    start = copy.deepcopy(model)
    train(other, its, range(5))
    with step_in_backward(optimizer) as steps:
        for step in range(5):
            optimizer.zero_grad()
            backward(model, step)
            assert all(p.grad is None for p in model.parameters())
            optimizer.step()
        assert steps is optimizer.__dict__["_in_backward"]
        assert {e.path for e in optimizer.explain()} == {"fused"}  # type: ignore[attr-defined]
    assert_same(model, optimizer, other, its)
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), start.parameters(), strict=True))


@pytest.mark.parametrize("name", TORCHS)
def test_torchs_own_classes_step_too(name: str) -> None:
    model, optimizer, other, its = pair(getattr(torch.optim, name))
    train(other, its, range(4))
    step_in_backward(optimizer)
    for step in range(4):
        backward(model, step)
        assert all(p.grad is None for p in model.parameters())
    assert_same(model, optimizer, other, its)


@pytest.mark.parametrize("cls", [torch.optim.SparseAdam, fusedopt.SGD, fusedopt.Adagrad])
def test_sparse_gradients(cls: Any) -> None:
    torch.manual_seed(0)
    model, indices = nn.Embedding(5, 3, sparse=True), torch.tensor([1, 3, 1])
    other = copy.deepcopy(model)
    optimizer, its = cls(model.parameters(), lr=0.1), cls(other.parameters(), lr=0.1)
    step_in_backward(optimizer)
    with torch.sparse.check_sparse_tensor_invariants():
        for _ in range(3):
            model(indices).square().sum().backward()
            assert model.weight.grad is None
            its.zero_grad()
            other(indices).square().sum().backward()
            its.step()
    assert_equal(model.weight, other.weight)


def test_a_sparse_gradient_that_is_refused_stays() -> None:
    model = nn.Embedding(5, 3, sparse=True)
    before = model.weight.detach().clone()
    optimizer = adam(model.parameters())
    step_in_backward(optimizer)
    with pytest.raises(RuntimeError, match="sparse"):
        model(torch.tensor([1])).sum().backward()
    assert_equal(model.weight.detach(), before)
    assert model.weight.grad is not None
    assert not optimizer.state


def test_few_gradients_are_alive_at_a_time() -> None:
    def most_alive(*, in_backward: bool) -> int:
        model = Net(depth=24, width=8)
        optimizer = adam(model.parameters())
        if in_backward:
            step_in_backward(optimizer)
        seen: list[StorageWeakRef] = []
        alive: list[int] = []

        def look(grad: Tensor) -> None:
            seen.append(StorageWeakRef(grad.untyped_storage()))
            alive.append(sum(not storage.expired() for storage in seen))

        for p in model.parameters():
            p.register_hook(look)
        for step in range(3):
            optimizer.zero_grad()
            backward(model, 2 * step)
            optimizer.step()
        assert len(seen) == 3 * 24
        return max(alive)

    assert most_alive(in_backward=False) == 24
    assert most_alive(in_backward=True) == 1


def test_gradients_accumulate_within_the_context() -> None:
    model, optimizer, other, its = pair(adam)
    steps = step_in_backward(optimizer)
    for step in range(3):
        before = copy.deepcopy(model.state_dict())
        with steps.accumulating():
            for part in range(3):
                backward(model, 3 * step + part)
        assert_equal(model.state_dict(), before)
        assert model.layers[0].weight.grad is not None
        backward(model, 10)  # in which one layer has no part: what it has is for step()
        assert model.layers[0].weight.grad is None
        assert model.sometimes.weight.grad is not None
        optimizer.step()
        optimizer.zero_grad()
        its.zero_grad()
        for part in (3 * step, 3 * step + 1, 3 * step + 2, 10):
            backward(other, part)
        its.step()
    assert_same(model, optimizer, other, its)


def test_an_error_in_the_context_ends_it() -> None:
    model = Net()
    optimizer = adam(model.parameters())
    steps = step_in_backward(optimizer)
    with pytest.raises(KeyError), steps.accumulating():
        raise KeyError
    backward(model, 0)
    assert optimizer.state[model.layers[0].weight]["step"] == 1


def test_a_parameter_that_is_used_twice_is_stepped_once() -> None:
    model = Net()
    optimizer = adam(model.parameters())
    step_in_backward(optimizer)
    for step in range(3):
        backward(model, step)
        optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in model.parameters()] == [3, 3, 3, 1]


def test_step_takes_what_is_left_and_nothing_twice() -> None:
    model, optimizer, other, its = pair(adam)
    step_in_backward(optimizer)
    by_hand = torch.ones(8, 8)

    def closure() -> Tensor:
        optimizer.zero_grad()
        backward(model, 0)
        model.sometimes.weight.grad = by_hand
        return torch.tensor(3.0)

    assert optimizer.step(closure) == 3
    optimizer.zero_grad()
    optimizer.step()
    backward(other, 0)
    other.sometimes.weight.grad = by_hand
    its.step()
    assert_same(model, optimizer, other, its)


def test_learning_rates_and_schedules_act() -> None:
    model, optimizer, other, its = pair(adam)
    step_in_backward(optimizer)
    for net, its_optimizer, ordinary in ((model, optimizer, False), (other, its, True)):
        schedule = torch.optim.lr_scheduler.ExponentialLR(its_optimizer, 0.5)
        for step in range(4):
            its_optimizer.zero_grad()
            backward(net, step)
            if ordinary:
                its_optimizer.step()
            schedule.step()  # which warns, here an error, where it sees no step before
            its_optimizer.param_groups[1]["weight_decay"] = 0.1 * step
    assert_same(model, optimizer, other, its)


def test_a_scheduler_still_warns_where_there_was_no_step() -> None:
    optimizer = adam(Net().parameters())
    step_in_backward(optimizer)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        schedule.step()


@pytest.mark.parametrize("into_backward", [False, True])
def test_checkpoints_go_both_ways(into_backward: bool) -> None:
    model, optimizer, other, its = pair(adam)
    if not into_backward:
        step_in_backward(optimizer)
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, states = torch.load(file, weights_only=True)
    other.load_state_dict(weights)
    if into_backward:
        step_in_backward(its)
        train(other, its, range(2))  # so that it has plans and states of its own, which are replaced
        other.load_state_dict(weights)
    its.load_state_dict(states)
    train(model, optimizer, range(3, 6))
    train(other, its, range(3, 6))
    assert_same(model, optimizer, other, its)


def test_models_and_optimizers_are_saved_and_copied_without_it() -> None:
    model = Net()
    optimizer = adam(model.parameters())
    step_in_backward(optimizer)
    backward(model, 0)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(model)):
        backward(other, 0)
        assert other.layers[0].weight.grad is not None
    twin = copy.deepcopy(optimizer)
    params = twin.param_groups[0]["params"]
    for p in params:
        p.grad = torch.ones_like(p)
    twin.step()
    assert [twin.state[p]["step"].item() for p in params] == [2, 2, 2, 1]


def test_parameters_that_come_later() -> None:
    model, optimizer, other, its = pair(adam)
    frozen = model.layers[1].weight.requires_grad_(False)
    other.layers[1].weight.requires_grad_(False)
    step_in_backward(optimizer)
    assert not frozen.requires_grad
    train(model, optimizer, range(2))
    train(other, its, range(2))
    for net in (model, other):
        net.layers[1].weight.requires_grad_(True)
    backward(model, 2)
    assert frozen.grad is None  # it had its hook
    its.zero_grad()
    backward(other, 2)
    its.step()
    for net, its_optimizer in ((model, optimizer), (other, its)):
        new = nn.Linear(8, 8, bias=False)
        new.load_state_dict(net.sometimes.state_dict())
        net.layers.append(new)
        its_optimizer.add_param_group({"params": new.parameters(), "lr": 0.01})
    train(model, optimizer, range(3, 5))
    backward(model, 5)
    assert model.layers[-1].weight.grad is None  # since the first step()
    train(other, its, range(3, 6))
    assert_same(model, optimizer, other, its)


def test_lazy_parameters() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
    step_in_backward(optimizer)
    model(torch.ones(2, 4))
    before = copy.deepcopy(model.state_dict())
    for had_hook in (False, True):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        assert (model[0].weight.grad is None) == had_hook
        optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_parameters_that_change_their_group() -> None:
    model, optimizer, other, its = pair(adam)
    step_in_backward(optimizer)
    train(model, optimizer, range(2))
    train(other, its, range(2))
    for its_groups in (optimizer.param_groups, its.param_groups):
        its_groups[0]["params"].append(its_groups[1]["params"].pop(0))
    train(model, optimizer, range(2, 4))
    train(other, its, range(2, 4))
    removed = optimizer.param_groups[0]["params"].pop()
    before = removed.detach().clone()
    backward(model, 4)
    assert_equal(removed.detach(), before)
    assert removed.grad is not None
    assert_same(other, its, other, its)
