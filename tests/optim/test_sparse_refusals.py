"""Sparse gradients, which most classes refuse."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from cases import Case
from pair import each_class, make_twin, set_grads
from refused import assert_refused, error_of, good, start, started
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fusedopt

pytestmark = [pytest.mark.steps, pytest.mark.on_gpu]

# What torch's class says; the others refuse them by their name.
SPARSE = {
    fusedopt.SGD: "add\\(sparse, dense\\) is not supported",
    fusedopt.Adagrad: "weight_decay option is not compatible with sparse gradients",
    fusedopt.Adam: "Adam does not support sparse gradients, please consider SparseAdam instead",
    fusedopt.AdamW: "Adam does not support sparse gradients, please consider SparseAdam instead",
}


@good
@started
@pytest.mark.parametrize("clip", [None, 0.5])
@each_class
def test_sparse_gradient(case: Case, good: str, steps: int, clip: float | None) -> None:
    opt, params = start(case, good, steps, max_grad_norm=clip)
    with torch.sparse.check_sparse_tensor_invariants():
        params[2].grad = params[2].grad.to_sparse(1)
    assert_refused(
        opt, params, RuntimeError, SPARSE.get(case.cls, f"{case.cls.__name__} does not support sparse gradients")
    )
    if case.twin:
        copies = [nn.Parameter(p.detach().clone()) for p in params[2:]]
        copies[0].grad = params[2].grad
        twin = make_twin(case, copies)
        assert error_of(twin.step) == error_of(opt.step)
    set_grads(params, 7)
    opt.step()  # and goes on


class Watching(TorchDispatchMode):
    """Sees every operation, so that each step is torch's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@good
@started
@pytest.mark.parametrize("wrong", ["sparse", "shape", "lr", "fused"])
@pytest.mark.parametrize("everything_torch", [fusedopt.native, Watching])
@each_class
def test_refused_where_every_step_is_torchs(
    case: Case, everything_torch: Any, wrong: str, good: str, steps: int
) -> None:
    """As by a fused step: by the same error, and with nothing changed."""
    opt, params = start(case, good, steps)
    if wrong == "sparse":
        params[2].grad = params[2].grad.to_sparse(1)
    elif wrong == "lr":
        if case.cls is fusedopt.Rprop and steps:
            return  # its step sizes have been made, and nothing reads the rate any more
        opt.param_groups[1]["lr"] = "0.1"
    else:
        params[2].grad.data = torch.ones(4, 3)
        opt.param_groups[1]["fused"] = wrong == "fused" or None
    kind, message = error_of(opt.step)
    with everything_torch():
        assert_refused(opt, params, kind, re.escape(message))
    opt.param_groups[1].update(lr=0.1, fused=None)
    set_grads(params, 7)
    opt.step()
