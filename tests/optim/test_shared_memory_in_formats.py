"""Parameters, states and gradients in one memory, stored in other formats than torch's: stepped one after another."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gpu
import pytest
import torch
from cases import BF16, BY_NAME, ONE_OF_EACH, Case
from pair import make_params, set_grads
from refused import assert_refused
from stored_states import in_formats
from torch import Tensor, nn
from torch.optim import Optimizer

import fusedopt
from fusedopt import native

pytestmark = [pytest.mark.steps, pytest.mark.on_gpu]

FORMATS: dict[str, dict[str, Any]] = {
    "average": {"ema_decay": 0.9},
    "bfloat16": {"state_dtype": BF16},
    "by chance": {"state_dtype": BF16, "stochastic_rounding": True, "ema_decay": 0.9},
    "8bit": {"state_dtype": "8bit", "min_8bit_size": 0},
}


def tied() -> list[Tensor]:
    p, q = make_params([(17, 5), (4,)])
    return [p, q, nn.Parameter(p.data)]


def overlapping() -> list[Tensor]:
    base = torch.linspace(-1, 1, 30)
    return [nn.Parameter(base[:20]), *make_params([(4,)]), nn.Parameter(base[10:])]


def strided() -> list[Tensor]:
    base = torch.linspace(-1, 1, 30)
    return [nn.Parameter(base[::2]), *make_params([(4,)]), nn.Parameter(base)]


def twice() -> list[Tensor]:
    p, q = make_params([(17, 5), (4,)])
    return [p, q, p]


KINDS = {"tied": tied, "overlapping": overlapping, "strided": strided, "listed twice": twice}
EACH = [case for case in ONE_OF_EACH if case.cls is not fusedopt.SWATS]  # which decides by a whole group


def make(case: Case, params: list[Tensor], **options: Any) -> Optimizer:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate")
        return case.make(params, **options)


def step_one_by_one(opt: Optimizer, params: list[Tensor], grads: list[Tensor]) -> None:
    """A step for each parameter, in their order."""
    group = opt.param_groups[0]
    opt._index_of(params[0])  # type: ignore[attr-defined]  # remembers their places, which random bits are by
    for p, grad in zip(params, grads, strict=True):
        p.grad, group["params"] = grad, [p]
        with native():
            opt.step()
    group["params"] = params


def assert_equal(ours: Optimizer, a: list[Tensor], theirs: Optimizer, b: list[Tensor]) -> None:
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
        torch.testing.assert_close(dict(ours.state[p]), dict(theirs.state[q]), rtol=0, atol=0, check_device=False)


@pytest.mark.parametrize("kind", KINDS)
@in_formats(FORMATS, EACH)
def test_no_update_is_lost(case: Case, kind: str, formats: str) -> None:
    a, b = KINDS[kind](), KINDS[kind]()
    ours, theirs = (make(case, params, **FORMATS[formats]) for params in (a, b))
    for i in range(3):
        set_grads(a, i)
        set_grads(b, i)
        ours.step()
        step_one_by_one(theirs, b, [p.grad for p in b if p.grad is not None])
        assert ours.explain()[0].path == ours.explain()[2].path == "torch"  # type: ignore[attr-defined]
        for opt, params in ((ours, a), (theirs, b)):
            opt.state[params[1]].clear()  # fused in the one, torch's in the other
            params[1].data.zero_()
        assert_equal(ours, a, theirs, b)


def later_parameter(a: Tensor, b: Tensor, state: Tensor) -> None:
    a.grad = b.detach()


def earlier_parameter(a: Tensor, b: Tensor, state: Tensor) -> None:
    b.grad = a.detach()


def numpys_memory(a: Tensor, b: Tensor, state: Tensor) -> None:
    b.grad = torch.from_numpy(a.detach().numpy())


def state_of_another(a: Tensor, b: Tensor, state: Tensor) -> None:
    b.grad = state


GRADIENTS: dict[str, Callable[[Tensor, Tensor, Tensor], None]] = {
    "later parameter": later_parameter,
    "earlier parameter": earlier_parameter,
    "NumPy's memory": numpys_memory,
    "average of another": state_of_another,
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("case", EACH, ids=str)
def test_a_gradient_in_memory_that_is_written(case: Case, kind: str) -> None:
    if kind == "NumPy's memory" and gpu.TEST_DEVICE != "cpu":
        pytest.skip("NumPy has no GPU memory")
    a, b = make_params([(40,), (40,)]), make_params([(40,), (40,)])
    ours, theirs = case.make(a, ema_decay=0.5), case.make(b, ema_decay=0.5)
    for i in range(4):
        for opt, params in ((ours, a), (theirs, b)):
            set_grads(params, i)
            if i:
                GRADIENTS[kind](*params, opt.state[params[0]]["average"])
        if i:
            ours.step()
            assert {e.path for e in ours.explain()} == {"torch"}  # type: ignore[attr-defined]
        else:
            with native():
                ours.step()
        step_one_by_one(theirs, b, [p.grad for p in b if p.grad is not None])
        assert_equal(ours, a, theirs, b)


def test_a_parameter_in_torchs_format_shares_memory_with_one_that_is_not() -> None:
    p = torch.zeros(4)
    params = [nn.Parameter(p), nn.Parameter(p), nn.Parameter(p)]
    opt = fusedopt.SGD([{"params": [params[0]]}, {"params": params[1:], "ema_decay": 0.5}], lr=1.0)
    for q in params:
        q.grad = torch.ones(4)
    opt.step()
    assert p.tolist() == [-3] * 4
    assert "average" not in opt.state[params[0]]


@pytest.mark.parametrize("formats", [{}, {"ema_decay": 0.5}], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_gradient_is_clipped_and_unscaled_once(groups: int, formats: dict[str, Any]) -> None:
    """However often its parameter is listed, and whoever else has it."""
    p, q = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    listed = [{"params": [p, p, q]}]
    opt = make(BY_NAME["sgd"], listed, lr=1.0, fused=True, max_grad_norm=0.5, **formats)  # type: ignore[arg-type]
    if groups == 2:
        opt.param_groups[0]["params"].pop(1)
        opt.param_groups.append({**opt.param_groups[0], "params": [p]})
    p.grad = q.grad = torch.full((4,), 8.0)
    opt.grad_scale = torch.tensor(4.0)  # type: ignore[attr-defined]
    opt.step()
    assert torch.equal(p.grad, torch.full((4,), 8.0))
    norm = 2.0 * 12**0.5
    expected = torch.full((4,), -0.5 / norm * 2)
    torch.testing.assert_close((p.detach(), q.detach()), (2 * expected, expected), rtol=1e-4, atol=0)


def test_swats_refuses_what_it_would_have_to_step_one_by_one() -> None:
    params = tied()
    opt = fusedopt.SWATS(params, lr=0.1, ema_decay=0.9)
    set_grads(params, 0)
    assert_refused(opt, params, RuntimeError, "SWATS: parameters, states or gradients share memory")
    del opt.param_groups[0]["ema_decay"]
    opt.step()
