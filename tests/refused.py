"""Steps that are refused, with nothing changed: in groups of parameters that would be taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case
from pair import set_grads
from torch import Tensor, nn
from torch.optim import Optimizer

from fusedopt.optim._codecs import tensors_in


def error_of(f: Callable[[], Any]) -> tuple[type[BaseException], str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        f()
    return type(caught.value), str(caught.value)


def snapshot(opt: Optimizer, params: list[Tensor]) -> Any:
    """Everything that a step may change, with the keys and identities of the states."""
    with torch.no_grad():
        states = [{k: (id(v), _kept(v)) for k, v in opt.state.get(p, {}).items()} for p in params]
        return [p.clone() for p in params], states


def _kept(value: Any) -> Any:
    return [t.clone() for t in tensors_in(value)] or value


def assert_refused(opt: Optimizer, params: list[Tensor], kind: Any, match: str) -> None:
    before = snapshot(opt, params)
    grads = [(p.grad, None if p.grad is None else p.grad.clone()) for p in params]
    with pytest.raises(kind, match=match):
        opt.step()
    torch.testing.assert_close(snapshot(opt, params), before, rtol=0, atol=0, equal_nan=True)
    for p, (grad, value) in zip(params, grads, strict=True):
        assert p.grad is grad
        assert grad is None or grad.is_sparse or torch.equal(grad, value)


# How good parameters, in a group before the refused one, are stepped.
GOOD: dict[str, Callable[[], Tensor]] = {
    "fused": lambda: nn.Parameter(torch.ones(4)),
    "complex": lambda: nn.Parameter(torch.ones(4, dtype=torch.complex64)),
    "strided": lambda: nn.Parameter(torch.ones(8)[::2]),
}


good = pytest.mark.parametrize("good", GOOD)


started = pytest.mark.parametrize("steps", [0, 2])


def start(case: Case, good: str, steps: int, **kwargs: Any) -> tuple[Optimizer, list[Tensor]]:
    """A good parameter in one group, then a good one and the last, which is to be refused, in another."""
    params = [GOOD[good](), nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(3, 2))]
    opt = case.make([{"params": params[:1]}, {"params": params[1:]}], **kwargs)
    for i in range(steps):
        set_grads(params, i)
        opt.step()
    set_grads(params, steps)
    return opt, params
