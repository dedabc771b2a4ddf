"""What steps within the backward pass cannot do is refused, with the reason, before anything is changed."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backward_steps import Net, adam, assert_equal, backward, train
from torch import nn
from torch.optim.optimizer import Optimizer

import fusedopt
from fusedopt import step_in_backward
from fusedopt.data import make_hands
from fusedopt.models import HandClassifier
from fusedopt.training import Settings
from fusedopt.training import train as training

# Without the pretended GPU, which is not seen where autograd runs hooks: a build for the executor steps on its kernels.
pytestmark = [pytest.mark.steps, pytest.mark.usefixtures("one_thread"), pytest.mark.below_python]


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


def test_a_parameter_that_is_listed_twice_is_refused() -> None:
    """Its hook runs once."""
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = fusedopt.SGD([p, p], lr=1.0)
    with pytest.raises(ValueError, match="listed twice"):
        step_in_backward(optimizer)
    optimizer.param_groups[0]["params"].pop()
    step_in_backward(optimizer)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer.add_param_group({"params": [q, q]})
    q.grad = torch.ones(3)
    with pytest.raises(ValueError, match="listed twice"):
        optimizer.step()
    assert q.tolist() == [1, 1, 1]


@pytest.mark.parametrize("fused", [None, True])
def test_a_scaler_is_refused_before_a_step(fused: bool | None) -> None:
    model = Net()
    optimizer = adam(model.parameters(), fused=fused)
    step_in_backward(optimizer)
    before = copy.deepcopy(model.state_dict())
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="a GradScaler of this process"):
        scaler.scale(model(torch.ones(2, 8)).sum()).backward()
    assert_equal(model.state_dict(), before)
    optimizer.zero_grad()
    # One that is off, and one that scales nothing yet, are no reason.
    scaler, other = torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(2, 8)).sum()).backward()
    assert optimizer.state[model.layers[0].weight]["step"] == 1
    assert other.get_scale() == 65536


class OwnScaler(torch.amp.GradScaler):
    """As ShardedGradScaler is one."""


SCALERS: dict[str, Callable[[torch.amp.GradScaler], torch.amp.GradScaler]] = {
    "new": lambda early: torch.amp.GradScaler("cpu"),
    "of another class": lambda early: OwnScaler("cpu"),
    "of before the handle": lambda early: early,
    "copied": copy.deepcopy,
    "unpickled": lambda early: pickle.loads(pickle.dumps(early)),
}


@pytest.mark.parametrize("kind", SCALERS)
@pytest.mark.parametrize("cls", [fusedopt.AdamW, torch.optim.AdamW])
def test_a_scaler_that_comes_between_two_passes_is_refused(kind: str, cls: Any) -> None:
    early = torch.amp.GradScaler("cpu")
    model = Net()
    optimizer = cls(model.parameters())
    with step_in_backward(optimizer):
        backward(model, 0)
        before = copy.deepcopy(model.state_dict())
        scaler = SCALERS[kind](early)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="a GradScaler of this process"):
                scaler.scale(model(torch.ones(2, 8)).sum()).backward()
            assert_equal(model.state_dict(), before)
        del scaler, early
        optimizer.zero_grad()
        backward(model, 1)
        assert optimizer.state[model.layers[0].weight]["step"] == 2


def test_scalers_cost_a_backward_pass_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    optimizer = adam(model.parameters())
    scaler = torch.amp.GradScaler("cpu")
    with step_in_backward(optimizer):
        monkeypatch.setattr(gc, "get_objects", lambda *_: pytest.fail("looked at every object"))
        monkeypatch.setattr(gc, "collect", lambda *_: pytest.fail("collected garbage"))
        backward(model, 0)
    assert scaler.get_scale() == 65536


def test_a_scale_on_the_optimizer_is_refused_at_its_step() -> None:
    model = Net()
    optimizer = adam(model.parameters(), fused=True)
    steps = step_in_backward(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    with steps.accumulating():
        scaler.scale(model(torch.ones(2, 8)).sum()).backward()
    with pytest.raises(RuntimeError, match="still scaled"):
        scaler.step(optimizer)
    del scaler
    with pytest.raises(RuntimeError, match="still scaled"):  # which the scaler has not taken back
        backward(model, 0)


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
