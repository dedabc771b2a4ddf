"""What steps in the backward pass keep alive, and what they leave on parameters: no more than they need."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backward_steps import Net, adam, backward, groups, train
from torch import Tensor, nn

import fusedopt
from fusedopt import step_in_backward
from fusedopt.optim import _in_backward

# Without the pretended GPU, which is not seen where autograd runs hooks: a build for the executor steps on its kernels.
pytestmark = [pytest.mark.steps, pytest.mark.usefixtures("one_thread", "no_collector"), pytest.mark.below_python]
BOTH = pytest.mark.parametrize("cls", [fusedopt.AdamW, torch.optim.AdamW])


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What a test lets go of is gone at once, or it is in a cycle."""
    for cls in (fusedopt.AdamW, torch.optim.AdamW):  # a process's first step imports, and its frames are in cycles
        model = Net()
        train(model, cls(model.parameters()), range(1))
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def hooks(*params: Tensor) -> list[int]:
    return [len(p._post_accumulate_grad_hooks or {}) for p in params]


@BOTH
def test_a_handle_keeps_nothing_of_an_optimizer_that_is_gone(cls: Any) -> None:
    model = Net()
    optimizer = cls(model.parameters())
    steps = step_in_backward(optimizer)
    train(model, optimizer, range(2))
    state = weakref.ref(optimizer.state[model.layers[1].weight]["exp_avg"])
    param = weakref.ref(model.layers[1].weight)
    del optimizer
    assert state() is None
    assert param() is not None
    assert hooks(*model.parameters()) == [1] * 4
    with pytest.warns(UserWarning, match="is gone"):
        backward(model, 0)
    assert hooks(*model.parameters()) == [0, 0, 0, 1]  # of those that the pass came to
    steps.remove()  # which still knows its hooks
    assert hooks(*model.parameters()) == [0] * 4
    del model
    assert param() is None


@BOTH
def test_a_handle_keeps_no_parameter(cls: Any) -> None:
    for removed in (False, True):
        model = Net()
        optimizer = cls(model.parameters())
        steps = step_in_backward(optimizer)
        train(model, optimizer, range(2))
        param = weakref.ref(model.layers[1].weight)
        if removed:
            steps.remove()
            optimizer.param_groups.clear()
            optimizer.state.clear()
        else:
            del optimizer
        del model
        assert param() is None
        steps.remove()


@BOTH
def test_states_that_are_replaced_are_free_at_once(cls: Any) -> None:
    model = Net()
    optimizer = cls(model.parameters())
    step_in_backward(optimizer)
    train(model, optimizer, range(2))
    replaced = weakref.ref(optimizer.state[model.layers[1].weight]["exp_avg"])
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert replaced() is None


@BOTH
def test_parameters_that_are_listed_no_more_are_left(cls: Any) -> None:
    model, other = Net(), Net(depth=1)
    optimizer = cls([*groups(model), *groups(other)])
    step_in_backward(optimizer)
    for net in (model, other):
        train(net, optimizer, range(2))
    kept = other.sometimes
    for group in optimizer.param_groups[2:]:
        for p in group["params"]:
            optimizer.state.pop(p, None)
    del optimizer.param_groups[2:], group, p
    param = weakref.ref(other.layers[0].weight)
    optimizer.step()
    assert hooks(kept.weight, *model.parameters()) == [0, 1, 1, 1, 1]
    del other, net
    assert param() is None
    train(model, optimizer, range(2))
    optimizer.add_param_group({"params": kept.weight})  # and back
    optimizer.step()
    kept(torch.ones(8)).sum().backward()
    assert kept.weight.grad is None


@BOTH
def test_handles_that_are_dropped_leave_no_hooks(cls: Any) -> None:
    model = Net()
    for _ in range(5):
        step_in_backward(cls(model.parameters()))
    assert hooks(*model.parameters()) == [1] * 4
    with pytest.warns(UserWarning, match="is gone"):
        backward(model, 1)
    assert hooks(*model.parameters()) == [0] * 4


@BOTH
def test_a_handle_that_is_held_is_in_nobodys_way_without_its_optimizer(cls: Any) -> None:
    model = Net()
    optimizer = cls(model.parameters())
    steps = step_in_backward(optimizer)
    del optimizer
    optimizer = cls(model.parameters())
    with step_in_backward(optimizer):
        assert hooks(*model.parameters()) == [1] * 4
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            backward(model, 1)
        assert [optimizer.state[p]["step"] for p in model.parameters()] == [1] * 4
        steps.remove()
        assert hooks(*model.parameters()) == [1] * 4
    assert hooks(*model.parameters()) == [0] * 4


@BOTH
def test_parameters_that_cannot_require_gradients_are_left_out(cls: Any) -> None:
    weight, numbers = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    with torch.inference_mode():
        inferred = torch.ones(3)
    waves = nn.Parameter(torch.ones(3, dtype=torch.complex64), requires_grad=False)  # which may come later
    optimizer = cls([numbers, weight, inferred, waves])
    step_in_backward(optimizer)
    assert hooks(numbers, weight, inferred, waves) == [0, 1, 0, 1]
    weight.sum().backward()
    optimizer.step()
    assert weight.grad is None
    assert optimizer.state.keys() == {weight}
    numbers.data = numbers.data.double()  # from now on it can
    numbers.requires_grad_(True)
    optimizer.step()
    assert hooks(numbers, weight) == [1, 1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", ["hook", "modules"])
def test_a_call_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, at: str, error: type[BaseException]) -> None:
    def fail(*_: Any) -> None:
        raise error

    model = Net()
    optimizer = adam(model.parameters())
    with monkeypatch.context() as patch:
        if at == "modules":
            patch.setattr(_in_backward, "register_module_module_registration_hook", fail)
        else:
            patch.setattr(model.sometimes.weight, "register_post_accumulate_grad_hook", fail)
        with pytest.raises(error):
            step_in_backward(optimizer)
    assert hooks(*model.parameters()) == [0] * 4
    assert not optimizer._optimizer_step_pre_hooks
    backward(model, 1)
    optimizer.step()
    assert [optimizer.state[p]["step"] for p in model.parameters()] == [1] * 4
    with step_in_backward(optimizer):
        train(model, optimizer, range(1, 2))
    assert [optimizer.state[p]["step"] for p in model.parameters()] == [2] * 4


def test_a_step_hook_without_its_handle_does_nothing() -> None:
    model = Net()
    optimizer = adam(model.parameters())
    step_in_backward(optimizer)
    del optimizer.__dict__["_in_backward"]
    optimizer.step()
