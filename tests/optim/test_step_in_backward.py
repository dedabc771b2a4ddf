"""Steps within the backward pass: the results of ordinary steps, with few gradients at a time, or a reason why not."""

from __future__ import annotations

import copy
import gc
import io
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import BF16, F32, LOOPS, Case
from ranks import gloo_group, run_ranks
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import Optimizer
from torch.utils.checkpoint import checkpoint

import fusedopt
from fusedopt import native, step_in_backward
from fusedopt.data import make_hands
from fusedopt.models import HandClassifier
from fusedopt.training import Settings
from fusedopt.training import train as training

# Without the pretended GPU, which is not seen where autograd runs hooks: a build for the executor steps on its kernels.
pytestmark = [pytest.mark.steps, pytest.mark.usefixtures("one_thread"), pytest.mark.below_python]
CASES = [case for case in LOOPS if case.max_grad_norm is None and case.cls is not fusedopt.SWATS]
TORCHS = sorted(set(torch.optim.__all__) & {"Adafactor", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD"})
TORCHS += ["Muon", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]


class Net(nn.Module):
    """With a layer that is used twice, and one that is used in every other pass."""

    def __init__(self, depth: int = 3, width: int = 8, dtype: torch.dtype = F32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False, dtype=dtype) for _ in range(depth))
        self.sometimes = nn.Linear(width, width, bias=False, dtype=dtype)

    def forward(self, x: Tensor, step: int = 0) -> Tensor:
        for layer in (*self.layers, self.layers[0]):
            x = torch.tanh(layer(x))
        return self.sometimes(x) if step % 2 else x


def backward(model: nn.Module, step: int, **options: Any) -> None:
    rng = torch.Generator().manual_seed(step)
    x = torch.randn(4, 8, generator=rng).to(next(model.parameters()).dtype)
    model(x, step).float().square().sum().backward(**options)


def groups(model: Net) -> list[dict[str, Any]]:
    first, *others = model.parameters()
    return [{"params": [first]}, {"params": others, "lr": 0.02}]


def train(model: Net, optimizer: Optimizer, steps: Iterator[int] | range) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def assert_same(model: Net, optimizer: Optimizer, other: Net, its: Optimizer) -> None:
    """Bit for bit, in the states as well."""
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_equal(p, q)
        state, its_state = optimizer.state.get(p, {}), its.state.get(q, {})
        assert state.keys() == its_state.keys()
        for name, value in state.items():
            assert_equal(value, its_state[name])


def assert_equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def pair(make: Callable[..., Optimizer], **kwargs: Any) -> tuple[Net, Optimizer, Net, Optimizer]:
    model, other = Net(**kwargs), Net(**kwargs)
    return model, make(groups(model)), other, make(groups(other))


def adam(params: Any, **kwargs: Any) -> fusedopt.AdamW:
    return fusedopt.AdamW(params, **({"lr": 0.1} | kwargs))


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


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_gradient_that_is_differentiated_again_waits() -> None:
    model, optimizer, other, its = pair(adam)
    step_in_backward(optimizer)
    for net, its_optimizer in ((model, optimizer), (other, its)):
        backward(net, 0, create_graph=True)
        weight = net.layers[1].weight
        assert weight.grad is not None
        penalty = weight.grad.square().sum()
        penalty.backward()
        assert (weight.grad is None) == (net is model)
        its_optimizer.step()
        for p in net.parameters():
            p.grad = None  # autograd's cycle
    assert_same(model, optimizer, other, its)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant: bool) -> None:
    model, optimizer, other, its = pair(adam)
    steps = step_in_backward(optimizer)
    x = torch.ones(4, 8, requires_grad=True)
    if reentrant:  # the first layer is in two segments, and neither has the whole gradient
        before = copy.deepcopy(model.state_dict())
        segments = checkpoint(model, checkpoint(model, x, use_reentrant=True), use_reentrant=True)
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            segments.sum().backward()
        assert_equal(model.state_dict(), before)
        steps.remove()
        return
    for net, its_optimizer in ((model, optimizer), (other, its)):
        checkpoint(net, checkpoint(net, x, use_reentrant=False), use_reentrant=False).sum().backward()
        its_optimizer.step()
    assert_same(model, optimizer, other, its)


def test_compiled_models() -> None:
    model, optimizer, other, its = pair(adam)
    step_in_backward(optimizer)
    for net, its_optimizer in ((model, optimizer), (other, its)):
        compiled = torch.compile(net, backend="aot_eager")
        for _ in range(3):
            its_optimizer.zero_grad()
            compiled(torch.ones(4, 8)).square().sum().backward()
            assert (net.layers[0].weight.grad is None) == (net is model)
            its_optimizer.step()
    assert_same(model, optimizer, other, its)


def test_torchs_path_is_followed_and_explained() -> None:
    model, optimizer, other, its = pair(adam)
    step_in_backward(optimizer)
    with native():
        backward(model, 1)
        optimizer.step()
        backward(other, 1)
        its.step()
    assert_same(model, optimizer, other, its)
    assert [e.path for e in optimizer.explain()] == ["torch"] * 4
    assert "native" in optimizer.explain()[0].reason


def test_threads_that_run_backward_passes_of_their_own() -> None:
    models = [Net() for _ in range(4)]
    expected = [copy.deepcopy(model) for model in models]
    optimizer = adam([p for model in models for p in model.parameters()])
    its = adam([p for model in expected for p in model.parameters()])
    step_in_backward(optimizer)

    def run(k: int) -> None:
        for step in range(20):
            backward(models[k], step + k)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for step in range(20):
        its.zero_grad()
        for k, model in enumerate(expected):
            backward(model, step + k)
        its.step()
    for model, other in zip(models, expected, strict=True):
        assert_same(model, optimizer, other, its)


def test_a_pass_waits_for_the_step_of_another_thread() -> None:
    model = Net()
    optimizer = adam(model.parameters())
    step_in_backward(optimizer)
    backward(model, 0)
    before = copy.deepcopy(model.state_dict())
    with optimizer._turn:  # type: ignore[union-attr]  # as step() has it
        thread = threading.Thread(target=backward, args=(model, 2))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert_equal(model.state_dict(), before)
    thread.join()
    assert optimizer.state[model.layers[0].weight]["step"] == 2


def test_remove_goes_back_to_ordinary_steps() -> None:
    model, optimizer, other, its = pair(adam)
    with step_in_backward(optimizer) as steps:
        train(model, optimizer, range(2))
    steps.remove()
    backward(model, 2)
    assert model.layers[0].weight.grad is not None
    optimizer.step()
    train(other, its, range(3))
    assert_same(model, optimizer, other, its)
    assert not optimizer._optimizer_step_pre_hooks
    optimizer.zero_grad()
    step_in_backward(optimizer)  # and again
    backward(model, 3)
    assert model.layers[0].weight.grad is None


def test_it_keeps_nothing_alive_and_says_when_the_optimizer_is_gone() -> None:
    model = Net()
    optimizer = adam(model.parameters())
    step_in_backward(optimizer)
    backward(model, 0)
    gone = weakref.ref(optimizer)
    del optimizer
    assert gone() is None
    with pytest.warns(UserWarning, match="is gone"):
        backward(model, 0)
    backward(model, 0)  # said once
    optimizer = adam(model.parameters())
    step_in_backward(optimizer)
    backward(model, 0)
    assert model.layers[0].weight.grad is None
    gone_too = weakref.ref(model.layers[0].weight)
    del model, optimizer
    gc.collect()
    assert gone_too() is None


class Stepping(fusedopt.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


REFUSED: dict[str, tuple[Callable[[Any], Optimizer], str]] = {
    "max_grad_norm": (lambda params: adam(params, max_grad_norm=1.0), "max_grad_norm=None"),
    "lamb": (fusedopt.LAMB, "max_grad_norm=None"),  # whose default it is
    "swats": (fusedopt.SWATS, "all gradients of a group"),
    "differentiable": (lambda params: adam(params, differentiable=True), "differentiable"),
    "lbfgs": (torch.optim.LBFGS, "step\\(\\) of its own"),
    "subclass": (Stepping, "step\\(\\) of its own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_more_than_one_gradient_is_refused(name: str) -> None:
    make, reason = REFUSED[name]
    model = Net()
    optimizer = make(model.parameters())
    with pytest.raises(ValueError, match=f"cannot step in the backward pass: .*{reason}"):
        step_in_backward(optimizer)
    backward(model, 0)
    assert model.layers[0].weight.grad is not None


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="Net"):
        step_in_backward(Net())  # type: ignore[arg-type]


def _clip(optimizer: Any) -> None:
    optimizer.defaults["max_grad_norm"] = 1.0


def _differentiable(optimizer: Any) -> None:
    optimizer.param_groups[0]["differentiable"] = True


def _flatten(optimizer: Any) -> None:
    for p in optimizer.param_groups[0]["params"]:
        p._fsdp_flattened = True


LATER = {
    "max_grad_norm=None": _clip,
    "GradientNoise": lambda optimizer: fusedopt.GradientNoise(optimizer),
    "differentiable": _differentiable,
    "FullyShardedDataParallel": _flatten,
}


@pytest.mark.parametrize("reason", LATER)
def test_what_comes_later_is_refused_in_the_pass(reason: str) -> None:
    model = Net()
    optimizer = adam(model.parameters())
    step_in_backward(optimizer)
    LATER[reason](optimizer)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=reason):
        backward(model, 1)
    assert_equal(model.state_dict(), before)
    with pytest.raises(ValueError, match="does already"):
        step_in_backward(optimizer)


def test_two_optimizers_cannot_step_one_parameter() -> None:
    model = Net()
    optimizer, another = adam(model.parameters()), fusedopt.SGD(model.parameters(), lr=0.1)
    steps = step_in_backward(optimizer)
    with pytest.raises(ValueError, match="another optimizer"):
        step_in_backward(another)
    assert not another._optimizer_step_pre_hooks
    steps.remove()
    with step_in_backward(another):
        backward(model, 1)
    assert all(another.explain()[i].path == "none" for i in range(4))
    assert not optimizer.state


def test_what_has_to_see_the_gradients_is_refused() -> None:
    model = Net()
    optimizer = adam(model.parameters())
    steps = step_in_backward(optimizer)
    with pytest.raises(ValueError, match=r"fusedopt.capture.*remove\(\)"), fusedopt.capture(model):
        train(model, optimizer, range(1))
    with fusedopt.capture(model, gradients=False) as history:
        train(model, optimizer, range(1))
    assert history.steps == [0]
    data = [(torch.ones(2, 8), torch.ones(2, 8))] * 4
    with pytest.raises(ValueError, match="accumulation_steps"):
        fusedopt.find_lr(model, optimizer, nn.MSELoss(), data, num_iter=4, accumulation_steps=2)
    found = fusedopt.find_lr(model, optimizer, nn.MSELoss(), data, num_iter=8)
    steps.remove()
    assert found.losses == fusedopt.find_lr(model, optimizer, nn.MSELoss(), data, num_iter=8).losses


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"max_grad_norm": 1.0}, {"amp": "fp16"}], ids=str)
def test_training_goes_as_before_or_is_refused(options: dict[str, Any]) -> None:
    data, networks = make_hands(32, 8), []
    for in_backward in (False, True):
        torch.manual_seed(0)
        network = HandClassifier()
        optimizer = adam(network.parameters(), lr=1e-3)
        if in_backward:
            step_in_backward(optimizer)
        arguments: dict[str, Any] = {"epochs": 1, "batch_size": 16, "settings": Settings(**options)}
        if in_backward and options:
            with pytest.raises(ValueError, match=r"accumulate, max_grad_norm or fp16.*remove\(\)"):
                training(network, optimizer, data, **arguments)
            return
        list(training(network, optimizer, data, **arguments))
        networks.append(network)
    assert_equal(networks[1].state_dict(), networks[0].state_dict())


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 1), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
def test_wrappers_that_reduce_gradients_are_refused(tmp_path: Path) -> None:
    with one_process(tmp_path):
        model = Net()
        optimizer = adam(model.parameters())
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        with pytest.raises(ValueError, match=r"DistributedDataParallel.*fully_shard"):
            step_in_backward(optimizer)
        elsewhere = adam(Net().parameters())
        step_in_backward(elsewhere).remove()
        del wrapped
        steps = step_in_backward(optimizer)
        with pytest.raises(ValueError, match="stepped in the backward pass, and DistributedDataParallel"):
            DistributedDataParallel(model)
        DistributedDataParallel(Net())
        steps.remove()
        DistributedDataParallel(model)
        for use_orig_params in (False, True):
            flat = FullyShardedDataParallel(Net(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
            with pytest.raises(ValueError, match="FullyShardedDataParallel"):
                step_in_backward(adam(flat.parameters()))


def test_shards_of_fsdp2_step_in_the_backward_pass(tmp_path: Path) -> None:
    for result in run_ranks(__file__, tmp_path, 2):
        assert result["stepped"]
        assert_equal(result["in backward"], result["ordinary"])
        assert "go over the processes" in result["refusal"]


def sharded() -> nn.Module:
    """A model whose layers are sharded each by itself, and one of them used twice."""
    torch.manual_seed(0)
    first, *others = (nn.Linear(8, 8) for _ in range(3))
    for module in (first, *others):
        fully_shard(module)
    model = nn.Sequential(first, *others, first)
    fully_shard(model)
    return model


def run_rank(rank: int, folder: Path, world: int) -> None:
    results: dict[str, Any] = {}
    x = torch.arange(8.0).reshape(1, 8) + rank
    with gloo_group(rank, folder, world):
        for name in ("ordinary", "in backward"):
            model = sharded()
            optimizer = adam(model.parameters())
            if name == "in backward":
                step_in_backward(optimizer)
            for _ in range(4):
                optimizer.zero_grad()
                model(x).square().sum().backward()
                results["stepped"] = all(p.grad is None for p in model.parameters())
                optimizer.step()
            results[name] = [p.full_tensor().detach() for p in model.parameters()]  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="backward pass") as refused:
            step_in_backward(fusedopt.LAMB(model.parameters(), max_grad_norm=None))
        results["refusal"] = str(refused.value)
        torch.save(results, folder / f"{rank}.pt")


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
