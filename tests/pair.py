"""Our optimizer and torch's, or the reference's, on equal parameters and gradients."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import gpu
import pytest
import torch
from cases import ONE_OF_EACH, Case
from torch import Tensor, nn
from torch.optim import Optimizer

import fusedopt

SHAPES = [(3,), (17, 5), ()]
each_class = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)


def counts_steps(case: Case) -> bool:
    """Whether the state of a parameter has a `step`, as the reference's has."""
    return _counts(case.reference)


@functools.cache
def _counts(reference: type[Optimizer]) -> bool:
    p = nn.Parameter(torch.ones(1, device="cpu"))
    p.grad = torch.ones_like(p)
    opt = reference([p])
    opt.step()
    return "step" in opt.state.get(p, {})


def make_params(shapes: Any = SHAPES, dtypes: Any = (torch.float32,)) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    values = [torch.randn(s, generator=rng, device="cpu").to(gpu.TEST_DEVICE) for s in shapes]
    return [nn.Parameter(value.to(dtypes[i % len(dtypes)])) for i, value in enumerate(values)]


def make_twin(case: Case, params: Any, **kwargs: Any) -> Optimizer:
    options = {"max_grad_norm": None} if case.cls is fusedopt.LAMB else {}
    return case.reference(params, **(case.kwargs | options | kwargs))


def one_by_one(case: Case) -> dict[str, Any]:
    """For parameters that share memory: torch's foreach form, its default on a GPU, updates them in no order."""
    return {"foreach": False} if case.twin else {}


def paths_within_a_group(case: Case, paths: list[str]) -> list[str]:
    """What becomes of these paths: what decides on a group as a whole, as SWATS, takes one with all of it."""
    return ["torch"] * len(paths) if case.cls._sum_scope == "group" and "torch" in paths else paths


def fresh_value(name: str, lr: float) -> float:
    """What a state starts from."""
    return {"gain": 1.0, "mu": 1.0, "mu_product": 1.0, "eta": lr, "step_size": lr}.get(name, 0.0)


class Pair:
    """Our optimizer and torch's on equal parameters."""

    def __init__(self, case: Case, *args: Any, **kwargs: Any) -> None:
        self.case, self.params = case, (make_params(*args), make_params(*args))
        self.ours, self.theirs = case.make(self.params[0], **kwargs), make_twin(case, self.params[1], **kwargs)

    def __iter__(self) -> Iterator[tuple[Optimizer, list[Tensor]]]:
        return iter([(self.ours, self.params[0]), (self.theirs, self.params[1])])

    def step(self, seed: int, without: Any = ()) -> None:
        for opt, params in self:
            set_grads(params, seed, without)
            opt.step()
        self.compare()

    def compare(self) -> None:
        for p, q in zip(*self.params, strict=True):
            close = {} if p.dtype.itemsize == 2 else {"rtol": 1e-5, "atol": 1e-5}
            torch.testing.assert_close(p, q, **close)
            ours, theirs = dict(self.ours.state.get(p, {})), dict(self.theirs.state.get(q, {}))
            for name in self.case.scalars:  # torch gives what it loads the dtype of the parameter, ours keeps its own
                if name in ours and name in theirs:
                    theirs[name] = theirs[name].to(ours[name].dtype)
            if gpu.ASYNCHRONOUS and not theirs:  # the host makes states before it knows of an overflow
                theirs = {
                    name: torch.full_like(value, fresh_value(name, self.case.kwargs["lr"]))
                    for name, value in ours.items()
                }
            torch.testing.assert_close(ours, theirs, **close, check_device=False)  # a GPU counts its steps itself


def set_grads(params: list[Tensor], seed: int, without: Any = ()) -> None:
    rng = torch.Generator().manual_seed(seed)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, generator=rng, device="cpu").to(gpu.TEST_DEVICE, p.dtype)
        p.grad = None if i in without else grad


def native_twin(case: Case, params: Any) -> Optimizer:
    """torch's class; what has none is its own twin on torch's path."""
    return case.make(params) if case.twin is None else make_twin(case, params, **one_by_one(case))


def step_natively(opt: Optimizer) -> None:
    with fusedopt.native():  # which torch's classes do not know of
        opt.step()


def step_both(ours: Optimizer, theirs: Optimizer) -> None:
    ours.step()
    step_natively(theirs)


def assert_identical(ours: Optimizer, a: list[Tensor], theirs: Optimizer, b: list[Tensor], paths: list[str]) -> None:
    """Equal to the bit where torch's path was taken, close elsewhere."""
    for p, q, path in zip(a, b, paths, strict=True):
        exactly = {"rtol": 0, "atol": 0} if path == "torch" else {}
        torch.testing.assert_close(p, q, **exactly)
        states = (dict(opt.state.get(param, {})) for opt, param in ((ours, p), (theirs, q)))
        torch.testing.assert_close(*states, **exactly, check_device=False)  # fused=True keeps its count on a GPU
