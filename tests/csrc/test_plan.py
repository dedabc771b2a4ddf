"""The walk: whatever is replaced between two steps is noticed, and nothing is kept alive."""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import gpu
import pytest
import torch
from pair import Pair, counts_steps, each_class, make_params, make_twin, set_grads
from torch import Tensor, nn
from torch.optim import Optimizer

import fusedopt

pytestmark = [pytest.mark.steps, pytest.mark.on_gpu]

SHAPES = [(4, 3, 5, 2), (6, 4), (3,)]


def replace_data(opt: Optimizer, params: list[Tensor]) -> None:
    params[0].data = params[0].data.clone()


def set_storage(opt: Optimizer, params: list[Tensor]) -> None:
    with torch.no_grad():
        params[0].set_(params[0].detach().clone())


def other_offset(opt: Optimizer, params: list[Tensor]) -> None:
    buffer = torch.zeros(params[1].numel() + 3)
    view = buffer[3:].view(params[1].shape)
    view.copy_(params[1].data)
    params[1].data = view


def other_sizes(opt: Optimizer, params: list[Tensor]) -> None:
    """In the same memory, states and all: 6 x 4 becomes 8 x 3."""
    for t in [params[1], *opt.state.get(params[1], {}).values()]:
        if t.dim():
            t.data = t.data.view(8, 3)


def fewer_elements(opt: Optimizer, params: list[Tensor]) -> None:
    for t in [params[1], *opt.state.get(params[1], {}).values()]:
        if t.dim():
            t.data = t.data[:2]


def other_strides(opt: Optimizer, params: list[Tensor]) -> None:
    """The same memory, sizes and addresses, read the other way round."""
    params[2].data = params[1].data.new_zeros(16).view(4, 4)
    for t in [params[2], *opt.state.get(params[2], {}).values()]:
        if t.dim():
            t.data = torch.linspace(0.1, 0.3, 16).view(4, 4)
            t.data = t.data.t()


def state_layout(opt: Optimizer, params: list[Tensor]) -> None:
    for key, value in opt.state.get(params[0], {}).items():
        if value.dim():
            opt.state[params[0]][key] = value.to(memory_format=torch.channels_last)


def everything_channels_last(opt: Optimizer, params: list[Tensor]) -> None:
    params[0].data = params[0].data.to(memory_format=torch.channels_last)
    state_layout(opt, params)


def other_dtype(opt: Optimizer, params: list[Tensor]) -> None:
    for t in [params[0], *opt.state.get(params[0], {}).values()]:
        if t.dim():
            t.data = t.data.double()


def swapped(opt: Optimizer, params: list[Tensor]) -> None:
    other = nn.Parameter(params[1].detach() + 1)
    params[1].grad = None
    torch.utils.swap_tensors(params[1], other)


def state_tensors_replaced(opt: Optimizer, params: list[Tensor]) -> None:
    for p in params:
        state = opt.state.get(p, {})
        for key in state:
            state[key] = state[key] * 1.5


def state_dicts_replaced(opt: Optimizer, params: list[Tensor]) -> None:
    for p in list(opt.state):
        opt.state[p] = {key: value * 1.5 for key, value in reversed(opt.state[p].items())}


def state_replaced(opt: Optimizer, params: list[Tensor]) -> None:
    state = {p: {k: v * 1.5 for k, v in opt.state[p].items()} for p in reversed(list(opt.state))}
    opt.state = defaultdict(dict, state)


def step_in_float64(opt: Optimizer, params: list[Tensor]) -> None:
    if "step" in opt.state.get(params[0], {}):
        opt.state[params[0]]["step"] = torch.tensor(7.0, dtype=torch.float64)


def params_reordered(opt: Optimizer, params: list[Tensor]) -> None:
    opt.param_groups[0]["params"].reverse()


def groups_replaced(opt: Optimizer, params: list[Tensor]) -> None:
    group = opt.param_groups[0]
    opt.param_groups = [{**group, "params": params[2:], "lr": 0.3}, {**group, "params": params[:2], "lr": 0.5}]


def param_removed(opt: Optimizer, params: list[Tensor]) -> None:
    del opt.param_groups[0]["params"][0]


def param_replaced(opt: Optimizer, params: list[Tensor]) -> None:
    params[0] = opt.param_groups[0]["params"][0] = nn.Parameter(params[0].detach().clone())
    if isinstance(opt, torch.optim.Adagrad):
        opt.state[params[0]] = {"step": torch.tensor(0.0), "sum": torch.zeros_like(params[0])}


def frozen(opt: Optimizer, params: list[Tensor]) -> None:
    params[0].requires_grad_(False)


CHANGES: list[Callable[[Optimizer, list[Tensor]], None]] = [
    replace_data,
    set_storage,
    other_offset,
    other_sizes,
    fewer_elements,
    other_strides,
    state_layout,
    everything_channels_last,
    other_dtype,
    swapped,
    state_tensors_replaced,
    state_dicts_replaced,
    state_replaced,
    step_in_float64,
    params_reordered,
    groups_replaced,
    param_removed,
    param_replaced,
    frozen,
]


@each_class
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_change_between_steps(case: Any, change: Callable[[Optimizer, list[Tensor]], None]) -> None:
    pair = Pair(case, SHAPES)
    pair.step(0)
    pair.step(1)
    for opt, params in pair:
        change(opt, params)
    for i in range(2, 5):
        pair.step(i)


@each_class
@pytest.mark.parametrize("kind", ["new tensor", "in place", "data", "offset", "strides", "reused address"])
def test_gradient_replaced(case: Any, kind: str) -> None:
    pair = Pair(case, SHAPES)
    pair.step(0)
    for seed in range(1, 4):
        for opt, params in pair:
            for p in params:
                rng = torch.Generator().manual_seed(seed)
                grad = torch.randn(p.shape, generator=rng, device="cpu").to(gpu.TEST_DEVICE)
                if kind == "new tensor":
                    p.grad = grad
                elif kind == "in place":
                    p.grad.copy_(grad)
                elif kind == "data":
                    p.grad.data = grad
                elif kind == "offset":
                    p.grad = torch.cat([torch.zeros(seed), grad.flatten()])[seed:].view(p.shape)
                elif kind == "strides":
                    p.grad = grad.transpose(0, -1).contiguous().transpose(0, -1)
                else:
                    p.grad = None
                    p.grad = grad.clone()
            opt.step()
        pair.compare()
    assert {e.path for e in pair.ours.explain()} == {"fused"}


@each_class
def test_module_conversions(case: Any) -> None:
    """model.to(dtype) and model.to(memory_format) replace the data of parameters under the optimizer."""
    models = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    pair = Pair(case)
    pair.params = list(models[0].parameters()), list(models[1].parameters())
    for model in models:
        model.to(memory_format=torch.channels_last)
    pair.ours, pair.theirs = case.make(pair.params[0]), make_twin(case, pair.params[1])
    pair.step(0)
    assert {e.path for e in pair.ours.explain()} == {"fused"}

    def convert(**kwargs: Any) -> None:
        for opt, model in zip((pair.ours, pair.theirs), models, strict=True):
            model.to(**kwargs)
            opt.zero_grad()

    convert(memory_format=torch.contiguous_format)
    pair.step(1)
    convert(memory_format=torch.channels_last)
    convert(dtype=torch.float64)
    for opt, _ in pair:
        opt.load_state_dict(opt.state_dict())  # brings the states to the new dtype
    pair.step(2)
    assert {e.path for e in pair.ours.explain()} == {"fused"}


@each_class
def test_replaced_states_and_dropped_gradients_are_not_kept(case: Any) -> None:
    params = make_params()
    opt = case.make(params)
    for i in range(2):
        set_grads(params, i)
        opt.step()
    dead = []
    key = value = None
    for p in params:
        dead.append(weakref.ref(p.grad))
        for key, value in opt.state.get(p, {}).items():
            dead.append(weakref.ref(value))
            opt.state[p][key] = value.clone()
    del p, key, value
    opt.zero_grad()
    assert not any(ref() is not None for ref in dead)
    opt.state.clear()
    del opt.param_groups[0]["params"][1:]
    gone = weakref.ref(params.pop())
    opt.step()
    assert gone() is None


@each_class
def test_version_counters(case: Any) -> None:
    params = make_params([(3,), (0,), (4,)])
    opt = case.make(params)
    set_grads(params, 0)
    opt.step()
    written = params + [v for p in params for v in opt.state.get(p, {}).values()]
    before = [t._version for t in written]
    grads = [p.grad._version for p in params]
    for expected in 1, 2:
        opt.step()
        assert all(t._version >= v + expected for t, v in zip(written, before, strict=True))
    assert [p.grad._version for p in params] == grads
    if counts_steps(case):
        assert len(written) == len(params) * (2 + len(case.states) + len(case.scalars))


@each_class
@pytest.mark.parametrize("saved", ["parameter", "state"])
def test_second_backward_through_a_graph_of_before_raises(case: Any, saved: str) -> None:
    p = nn.Parameter(torch.ones(3))
    opt = case.make([p])
    p.grad = torch.ones(3)
    opt.step()
    x = torch.ones(3, requires_grad=True)
    loss = (x * (p if saved == "parameter" else opt.state[p][case.states[0]])).sum()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_two_threads_step_two_optimizers() -> None:
    """Above the size from which the interpreter's lock is released."""
    pairs = []
    for _ in range(2):
        pairs.append([nn.Parameter(torch.linspace(-1, 1, 1_200_000)) for _ in range(2)])
    ours, alone = [fusedopt.AdamW(p[:1]) for p in pairs], [fusedopt.AdamW(p[1:]) for p in pairs]

    def train(opt: Optimizer, p: Tensor, sign: int) -> None:
        for i in range(6):
            p.grad = torch.full_like(p, sign * (i + 1.0))
            opt.step()

    threads = [threading.Thread(target=train, args=(ours[i], pairs[i][0], 2 * i - 1)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        train(alone[i], pairs[i][1], 2 * i - 1)
        assert torch.equal(*pairs[i])
