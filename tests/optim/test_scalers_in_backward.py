"""Steps within the backward pass: a GradScaler is noticed whenever it comes, and a parameter is listed once."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fusedopt
from fusedopt import step_in_backward

# As those of test_step_in_backward.py.
pytestmark = [pytest.mark.steps, pytest.mark.usefixtures("one_thread"), pytest.mark.below_python]


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, bias=False))


def backward(model: nn.Module, scaler: torch.amp.GradScaler | None = None) -> None:
    loss = model(torch.ones(2, 8)).sum()
    (loss if scaler is None else scaler.scale(loss)).backward()


def assert_equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


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
    model = make_model()
    optimizer = fusedopt.AdamW(model.parameters(), fused=fused)
    step_in_backward(optimizer)
    before = copy.deepcopy(model.state_dict())
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="a GradScaler of this process"):
        backward(model, scaler)
    assert_equal(model.state_dict(), before)
    optimizer.zero_grad()
    # One that is off, and one that scales nothing yet, are no reason.
    scaler, other = torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu")
    backward(model, scaler)
    assert optimizer.state[model[0].weight]["step"] == 1
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
    model = make_model()
    optimizer = cls(model.parameters())
    with step_in_backward(optimizer):
        backward(model)
        before = copy.deepcopy(model.state_dict())
        scaler = SCALERS[kind](early)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="a GradScaler of this process"):
                backward(model, scaler)
            assert_equal(model.state_dict(), before)
        del scaler, early
        optimizer.zero_grad()
        backward(model)
        assert optimizer.state[model[0].weight]["step"] == 2


def test_scalers_cost_a_backward_pass_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    optimizer = fusedopt.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cpu")
    with step_in_backward(optimizer):
        monkeypatch.setattr(gc, "get_objects", lambda *_: pytest.fail("looked at every object"))
        monkeypatch.setattr(gc, "collect", lambda *_: pytest.fail("collected garbage"))
        backward(model)
    assert scaler.get_scale() == 65536


def test_a_scale_on_the_optimizer_is_refused_at_its_step() -> None:
    model = make_model()
    optimizer = fusedopt.AdamW(model.parameters(), fused=True)
    steps = step_in_backward(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    with steps.accumulating():
        backward(model, scaler)
    with pytest.raises(RuntimeError, match="still scaled"):
        scaler.step(optimizer)
    del scaler
    with pytest.raises(RuntimeError, match="still scaled"):  # which the scaler has not taken back
        backward(model)
