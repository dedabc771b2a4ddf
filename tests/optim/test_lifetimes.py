"""What a step keeps alive, what it leaves when it is interrupted, and Python code that runs within it."""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusedopt
from fusedopt.lr_finder import kept
from fusedopt.optim import _averaged

pytestmark = [pytest.mark.steps, pytest.mark.usefixtures("one_thread"), pytest.mark.below_python]


class Hashed(nn.Parameter):
    """A parameter to look up which runs Python code."""

    on_hash: Callable[[], object] = staticmethod(lambda: None)

    def __hash__(self) -> int:
        self.on_hash()
        return id(self)


@pytest.fixture
def company() -> Iterator[None]:
    """Another thread of Python."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield
    end.set()
    thread.join()


def interrupted(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    """The function, before whose call of that number, from 1 on, comes a Ctrl-C."""
    calls = itertools.count(1)

    def calling(*args: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return function(*args)

    return calling


def parameter(*shape: int) -> nn.Parameter:
    p = nn.Parameter(torch.zeros(shape))
    p.grad = torch.ones(shape)
    return p


def test_a_step_after_one_that_broke_off_clips() -> None:
    p, q = parameter(4), nn.Parameter(torch.zeros(4))
    assert p.grad is not None
    p.grad.fill_(100)
    optimizer = fusedopt.SGD([p, q], lr=1.0, max_grad_norm=1.0)
    optimizer.param_groups[0]["params"][1] = None
    with pytest.raises(TypeError, match="only optimize Tensors"):
        optimizer.step()
    optimizer.param_groups[0]["params"][1] = q
    optimizer.step()
    assert optimizer.grad_norm == 200
    torch.testing.assert_close(p.detach(), torch.full((4,), -0.5))


def test_gradients_that_are_dropped_in_the_middle_of_a_step() -> None:
    """By a signal handler, or what else runs when Python code does."""
    params = [parameter(1000) for _ in range(3)]
    last = Hashed(torch.zeros(1000))
    last.grad = torch.ones(1000)
    optimizer = fusedopt.SGD([*params, last], lr=1.0)
    for _ in range(2):
        garbage: list[Tensor] = []

        def drop(garbage: list[Tensor] = garbage) -> None:
            for p in params:
                p.grad = None
            garbage += [torch.full((1000,), 1e30) for _ in range(8)]

        last.on_hash = drop
        optimizer.step()
        last.on_hash = lambda: None
        for p in (*params, last):
            assert bool((p.detach().abs() < 10).all())
            p.grad = torch.ones(1000)


def test_a_step_runs_no_python_to_find_states() -> None:
    optimizer = fusedopt.SGD([parameter(4) for _ in range(3)], lr=0.1)
    optimizer.step()
    called = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code))
    try:
        optimizer.step()
    finally:
        sys.setprofile(before)
    assert called
    assert Tensor.__hash__.__code__ not in called


@pytest.mark.usefixtures("company")
def test_a_refused_step_keeps_nothing_alive() -> None:
    dense, embedding = parameter(8), parameter(4, 2)
    optimizer = fusedopt.AdamW([dense, embedding])
    optimizer.step()
    embedding.grad = torch.eye(4, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    gone = [weakref.ref(dense.grad), weakref.ref(optimizer.state[dense]["exp_avg"])]
    optimizer.zero_grad()
    optimizer.state.clear()
    assert [reference() for reference in gone] == [None, None]


def test_states_in_another_mapping_are_let_go() -> None:
    p = parameter(8)
    optimizer = fusedopt.AdamW([p])
    optimizer.step()
    states: Any = UserDict(optimizer.state)
    optimizer.state = states
    p.grad = torch.ones(8)
    optimizer.step()
    gone = weakref.ref(states[p]["exp_avg"])
    del states
    optimizer.state = {}  # type: ignore[assignment]
    assert gone() is None


@pytest.mark.parametrize("at", range(1, 17))
def test_averaged_weights_end_with_a_ctrl_c(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    params = [parameter(3) for _ in range(4)]
    optimizer = fusedopt.SGD(params, lr=1.0, ema_decay=0.9)
    for _ in range(2):
        optimizer.step()
    before = [p.detach().clone() for p in params]
    monkeypatch.setattr(_averaged, "local", interrupted(_averaged.local, at))
    with pytest.raises(KeyboardInterrupt), optimizer.averaged_weights():
        assert at > 8, "not while they are put into the model"
    assert all(map(torch.equal, params, before))
    optimizer.step()


@pytest.mark.parametrize("at", [1, 4])
def test_a_range_test_ends_with_a_ctrl_c(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2))
    optimizer = fusedopt.AdamW(model.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    batches = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(2)]
    state = torch.get_rng_state()
    monkeypatch.setattr(kept, "_overlaps_itself", interrupted(kept._overlaps_itself, at))
    with pytest.raises(KeyboardInterrupt):
        fusedopt.find_lr(model, optimizer, nn.CrossEntropyLoss(), batches, num_iter=20)
    assert all(map(torch.equal, model.parameters(), before))
    assert torch.equal(torch.get_rng_state(), state)
    assert not optimizer.state
