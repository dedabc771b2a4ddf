"""What the fused path does not take: torch's own result bit for bit, and explain() says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpu
import pytest
import torch
from cases import BY_NAME, ONE_OF_EACH, Case
from pair import (
    assert_identical,
    counts_steps,
    each_class,
    make_params,
    make_twin,
    native_twin,
    one_by_one,
    paths_within_a_group,
    set_grads,
    step_both,
    step_natively,
)
from reference import has_form
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

import fusedopt

pytestmark = [pytest.mark.steps, pytest.mark.on_gpu]

OF_TORCH = [case for case in ONE_OF_EACH if case.twin]


def complex_and_real() -> list[Tensor]:
    return make_params([(4,), (3,), (2, 2)], (torch.float32, torch.complex64, torch.complex128))


def strided() -> list[Tensor]:
    return [nn.Parameter(torch.arange(12.0).view(3, 4)[:, ::2]), *make_params([(3,)])]


def overlapping() -> list[Tensor]:
    base = torch.arange(1.0, 13.0)
    return [nn.Parameter(base[:8]), nn.Parameter(base[4:]), *make_params([(3,)])]


def overlapping_half_way() -> list[Tensor]:
    """A dense parameter and one that is not, in the same memory."""
    base = torch.arange(1.0, 9.0)
    return [nn.Parameter(base), nn.Parameter(base[::2]), *make_params([(3,)])]


def transposed_twins() -> list[Tensor]:
    base = torch.arange(1.0, 7.0).view(2, 3)
    return [nn.Parameter(base), nn.Parameter(base.t()), *make_params([(3,)])]


def real_view_of_complex() -> list[Tensor]:
    base = torch.randn(4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0), device="cpu")
    base = base.to(gpu.TEST_DEVICE)
    return [nn.Parameter(base), nn.Parameter(torch.view_as_real(base)), *make_params([(3,)])]


# For each kind of parameters, the paths that they take.
KINDS: dict[str, tuple[Callable[[], list[Tensor]], list[str]]] = {
    "complex": (complex_and_real, ["fused", "torch", "torch"]),
    "strided": (strided, ["torch", "fused"]),
    "overlapping": (overlapping, ["torch", "torch", "fused"]),
    "overlapping-half-way": (overlapping_half_way, ["torch", "torch", "fused"]),
    "transposed-twins": (transposed_twins, ["torch", "torch", "fused"]),
    "view-of-complex": (real_view_of_complex, ["torch", "torch", "fused"]),
}


@each_class
@pytest.mark.parametrize("kind", KINDS)
def test_kind_of_parameter(case: Case, kind: str) -> None:
    make, paths = KINDS[kind]
    paths = paths_within_a_group(case, paths)
    a, b = make(), make()
    ours, theirs = case.make(a, **one_by_one(case)), native_twin(case, b)
    for i in range(3):
        set_grads(a, i)
        set_grads(b, i)
        step_both(ours, theirs)
        assert_identical(ours, a, theirs, b, paths)
    assert [e.path for e in ours.explain() if e.reason] == paths


@each_class
def test_expanded_parameter_is_refused_like_torchs(case: Case) -> None:
    for make in case.make, lambda params: native_twin(case, params):
        params = [*make_params([(3,)]), torch.ones(1).expand(4).requires_grad_()]
        opt = make(params)
        set_grads(params, 0)
        with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
            opt.step()
        assert bool((params[1] == 1).all())


def test_duplicate_parameter_has_torchs_warning_and_result() -> None:
    for case in OF_TORCH:
        results = []
        for make in case.make, lambda params, case=case, **kwargs: make_twin(case, params, **kwargs):
            a, b = make_params([(3,), (4,)])
            with pytest.warns(UserWarning, match="parameter group with duplicate parameters"):
                opt = make([a, b, a], **one_by_one(case))
            for i in range(3):
                set_grads([a, b], i)
                opt.step()
            results.append((a, opt.state.get(a, {}), opt))
        (a, state, ours), (b, expected, _) = results
        torch.testing.assert_close((a, dict(state)), (b, dict(expected)), rtol=0, atol=0)
        assert [e.path for e in ours.explain()] == ["torch", "fused", "torch"]
        assert not counts_steps(case) or state["step"] == 6


@pytest.mark.parametrize(
    ("name", "later"), [("sgd", False), ("sgd", True), ("sgd-momentum", True), ("adagrad-lr-decay", False)]
)
def test_sparse_gradient(name: str, later: bool) -> None:
    case = BY_NAME[name]
    a, b = make_params([(6, 2), (4,)]), make_params([(6, 2), (4,)])
    ours, theirs = case.make(a), make_twin(case, b)
    for i in range(4):
        sparse = i >= 2 if later else i < 2
        for params in a, b:
            set_grads(params, i)
            if sparse:
                with torch.sparse.check_sparse_tensor_invariants():
                    params[0].grad = (params[0].grad * torch.tensor([1, 0, 1, 0, 0, 1.0])[:, None]).to_sparse(1)
        step_both(ours, theirs)
        assert [e.path for e in ours.explain()] == ["torch" if sparse else "fused", "fused"]
        torch.testing.assert_close(a, b)


@pytest.mark.below_python
@each_class
def test_differentiable(case: Case) -> None:
    """A gradient through the second step; where torch has no such class, against finite differences."""

    def train(make: Callable[..., Optimizer], x: Tensor) -> Tensor:
        first, p = torch.ones(3, dtype=torch.float64), x.clone()
        opt = make([first], differentiable=True)
        first.grad = torch.full_like(first, 0.5)
        opt.step()
        opt.param_groups[0]["params"] = [p]
        opt.state[p] = opt.state.pop(first, {})
        p.grad = x**2
        opt.step()
        if make == case.make:
            assert [(e.path, e.reason) for e in opt.explain()] == [("torch", "differentiable=True")]
        return p

    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    if case.twin is None:
        assert torch.autograd.gradcheck(lambda x: train(case.make, x), (x,))
        return
    ours, theirs = (train(make, x) for make in (case.make, lambda p, **kw: make_twin(case, p, **kw)))
    (slope,), (expected,) = torch.autograd.grad(ours.sum(), x), torch.autograd.grad(theirs.sum(), x)
    torch.testing.assert_close((ours, slope), (theirs, expected), rtol=0, atol=0)
    assert bool((slope != 1).all()) == (not case.by_sign)


class Logged(Tensor):
    """A wrapper subclass, as DTensor is one."""

    @staticmethod
    def __new__(cls, data: Tensor) -> Logged:
        return Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype, strides=data.stride())

    def __init__(self, data: Tensor) -> None:
        self.data_inside = data

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inside = tree_map(lambda x: x.data_inside if isinstance(x, Logged) else x, (args, kwargs or {}))
        out = func(*inside[0], **inside[1])
        if func.__name__.split(".")[0].endswith("_"):
            return args[0]
        return tree_map(lambda x: Logged(x) if isinstance(x, Tensor) else x, out)


@each_class
def test_tensor_subclass_with_torch_dispatch(case: Case) -> None:
    results: list[Tensor] = []
    for make in case.make, lambda params: native_twin(case, params):
        inner, plain = make_params([(3, 4), (5,)])
        wrapped = Logged(inner.detach()).requires_grad_()
        opt = make([wrapped, plain])
        for i in range(2):
            set_grads([inner, plain], i)
            wrapped.grad = Logged(inner.grad)
            step_natively(opt) if results else opt.step()
        results.append(wrapped.data_inside)
        if len(results) == 1:
            assert [e.path for e in opt.explain()] == paths_within_a_group(case, ["torch", "fused"])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("flags", [{"fused": True}, {"foreach": True}, {"fused": False, "foreach": False}], ids=str)
@pytest.mark.parametrize("case", OF_TORCH, ids=str)
def test_flags_are_stored_and_choose_among_torchs_forms(case: Case, flags: dict[str, bool]) -> None:
    flags = {k: v for k, v in flags.items() if has_form(case.twin, "fused") or k == "foreach"}
    a, b = strided(), strided()
    # torch's fused kernels for the CPU update the wrong elements of a parameter with gaps: its for-loop takes that.
    right = {} if flags.get("fused") else flags
    ours, theirs = case.make(a, **flags), make_twin(case, b, **right)
    for i in range(3):
        set_grads(a, i)
        set_grads(b, i)
        step_both(ours, theirs)
        assert_identical(ours, a, theirs, b, ["torch", "fused"])
    assert flags.items() <= ours.param_groups[0].items()
    assert [e.path for e in ours.explain()] == ["torch", "fused"]


@pytest.mark.parametrize("case", OF_TORCH, ids=str)
def test_native_runs_everything_on_torchs_path(case: Case) -> None:
    a, b = make_params(), make_params()
    ours, theirs = case.make(a), make_twin(case, b)
    for i in range(3):
        set_grads(a, i, without={1})
        set_grads(b, i, without={1})
        with fusedopt.native():
            ours.step()
        theirs.step()
        assert_identical(ours, a, theirs, b, ["torch"] * 3)
    assert [e.path for e in ours.explain()] == ["torch", "none", "torch"]
    assert "native" in ours.explain()[0].reason
    ours.step()
    assert [e.path for e in ours.explain()] == ["fused", "none", "fused"]


@each_class
def test_only_the_leftover_is_stepped_and_only_once(case: Case) -> None:
    """Groups of both kinds: torch's path sees its own parameters and nothing else."""
    params = make_params([(4,), (4,), (4,), (4,)], (torch.float32, torch.complex64))
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.2}]
    opt = case.make(groups)
    lists = [group["params"] for group in opt.param_groups]
    for i in range(3):
        set_grads(params, i, without={1} if i == 1 else ())
        opt.step()
    assert all(group["params"] is own for group, own in zip(opt.param_groups, lists, strict=True))
    assert [e.path for e in opt.explain()] == paths_within_a_group(case, ["fused", "torch"] * 2)
    if counts_steps(case):
        assert [opt.state[p]["step"].item() for p in params] == [3, 2, 3, 3]


@pytest.mark.below_python
def test_uninitialized_parameter() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    (opt := fusedopt.Adam(model.parameters())).step()
    assert {e.path for e in opt.explain()} == {"none"}
    model(torch.ones(4, 5)).sum().backward()
    before = model[0].weight.detach().clone()
    opt.step()
    assert {e.path for e in opt.explain()} == {"fused"}
    assert not torch.equal(before, model[0].weight)
