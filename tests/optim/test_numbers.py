"""Hyper-parameters of any kind and size: where torch runs, so do we, with its result; where it raises, so do we."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import gpu
import numpy as np
import pytest
import torch
from cases import BY_NAME, DTYPES, F16, F32, F64, ONE_OF_EACH, Case, dtype_id
from pair import each_class, make_twin
from refused import assert_refused, snapshot
from torch import Tensor, nn
from torch.optim import Optimizer

import fusedopt

pytestmark = pytest.mark.usefixtures("one_thread")

BOUNDS = {"min_gain", "max_gain", "trust_clip", "phi", "step_sizes", "t0"}
LARGE = {"t0"}  # which only the step count is compared with
# What a rule takes; torch's operators turn them into the same number.
PLAIN = {
    "int": 1,
    "float": 0.5,
    "numpy-float64": np.float64(0.5),
    "numpy-float32": np.float32(0.5),
    "float32": torch.tensor(0.5),
    "float64": torch.tensor(0.5, dtype=F64),
}
ODD = {
    "above-float32": 1e39,
    "below-float32": -1e300,
    "above-float16": 1e5,
    "infinite": math.inf,
    "nan": math.nan,
    "above-int64": 2**70,
    "above-float64": 10**400,
    "bool": True,
    "numpy-bool": np.bool_(True),
    "numpy-int": np.int64(1),
    "numpy-float16": np.float16(0.5),
    "numpy-array": np.array(0.5),
    "float16": torch.tensor(0.5, dtype=F16),
    "bfloat16": torch.tensor(0.5, dtype=torch.bfloat16),
    "int64": torch.tensor(1),
    "bool-tensor": torch.tensor(True),
    "complex-tensor": torch.tensor(0.5 + 1j),
    "requires-grad": torch.tensor(0.5, requires_grad=True),
    "one-element": torch.tensor([0.5]),
    "two-elements": torch.tensor([0.5, 0.5]),
    "too-large-tensor": torch.tensor(1e39, dtype=F64),
    "none": None,
    "text": "0.5",
    "complex": 0.5 + 1j,
    "list": [0.5],
}


def numbers_of(group: dict[str, Any]) -> list[tuple[str, int | None]]:
    """Every hyper-parameter that is a number: its key, and where it stands in a tuple."""
    numbers: list[tuple[str, int | None]] = []
    for name, value in group.items():
        if isinstance(value, tuple):
            numbers += [(name, i) for i in range(len(value))]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers.append((name, None))
    return numbers


def put(opt: Optimizer, number: tuple[str, int | None], value: Any) -> None:
    (name, at), group = number, opt.param_groups[0]
    group[name] = value if at is None else (*group[name][:at], value, *group[name][at + 1 :])


def each_number(case: Case) -> Iterator[tuple[str, int | None]]:
    group = case.make([nn.Parameter(torch.ones(2))]).param_groups[0]
    # Adagrad's first sum and Rprop's first step sizes were made of them: they are nothing to a step.
    spent = "lr" if case.cls is fusedopt.Rprop else "initial_accumulator_value"
    return (number for number in numbers_of(group) if number[0] != spent)


def started(make: Any, dtype: torch.dtype, steps: int) -> tuple[Optimizer, list[Tensor]]:
    params = [nn.Parameter(torch.linspace(1, 2, n, device=gpu.TEST_DEVICE).to(dtype)) for n in (5, 3)]
    opt = make(params)
    for i in range(steps + 1):
        for p in params:
            p.grad = torch.linspace(-0.9, 0.4, p.numel(), device=gpu.TEST_DEVICE).to(dtype)
        if i < steps:
            with fusedopt.native():  # so that ours and torch's are equal to the bit by then
                opt.step()
    return opt, params


class Native:
    """What has no class of torch's, on torch's path: the plain PyTorch that stands beside the rule."""

    def __init__(self, opt: Optimizer) -> None:
        self.opt, self.param_groups, self.state = opt, opt.param_groups, opt.state

    def step(self) -> None:
        with fusedopt.native():
            self.opt.step()


def twin_of(case: Case, params: list[Tensor]) -> Any:
    return make_twin(case, params) if case.twin else Native(case.make(params))


def step_both(case: Case, dtype: torch.dtype, steps: int, number: tuple[str, int | None], value: Any) -> str:
    """Sets a hyper-parameter and steps, beside torch. Returns the path, or that both have raised."""
    ours, params = started(case.make, dtype, steps)
    theirs, twins = started(lambda params: twin_of(case, params), dtype, steps)
    put(ours, number, value)
    put(theirs, number, value)
    try:
        theirs.step()
    except Exception as error:
        assert_refused(ours, params, type(error), re.escape(str(error)))
        return "raised"
    ours.step()
    (path,) = {e.path for e in ours.explain()}  # type: ignore[attr-defined]
    close = {"rtol": 0, "atol": 0} if path == "torch" else {"rtol": 2e-2, "atol": 2e-2}
    close = close if path == "torch" or dtype.itemsize == 2 else {"rtol": 1e-5, "atol": 1e-5}
    names = {"equal_nan": True, "msg": lambda text: f"{number}={value!r}: {text}"}
    torch.testing.assert_close(snapshot(ours, params)[0], snapshot(theirs, twins)[0], **close, **names)
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(dict(ours.state.get(p, {})), dict(theirs.state.get(q, {})), **close, **names)
    return path


@pytest.mark.filterwarnings("ignore:Casting complex values to real", "ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", [*ONE_OF_EACH, BY_NAME["lamb-phi-decay"]], ids=str)
def test_number_of_any_kind(case: Case, dtype: torch.dtype, steps: int) -> None:
    for number in each_number(case):
        for kind, value in ODD.items():
            if number[0] == "lr" and kind == "too-large-tensor" and gpu.ON_CPU:
                continue  # only the kernel reads it, and computes an infinity
            # A rate may be of any shape with one element, and no step is part of its graph. A bound may be infinite.
            taken = number[0] == "lr" and kind in ("requires-grad", "one-element")
            taken = (
                taken or (number[0] in BOUNDS and kind == "infinite") or (number[0] == "trust_clip" and value is None)
            )
            taken = taken or (number[0] in LARGE and kind in ("above-float16", "above-int64"))
            path = step_both(case, dtype, steps, number, value)
            assert path == "fused" if taken else path in ("torch", "raised"), (number, kind)
        for kind, value in PLAIN.items():
            if number[0] == "etas" and kind == "numpy-float32":
                continue  # torch cannot assign one to elements of a tensor
            # A fraction is below 1. And a tensor on a GPU is read there: the rate by the kernel, others by torch.
            fraction = number[0] in case.fractions and value == 1
            there = isinstance(value, Tensor) and gpu.ON_CPU and number[0] != "lr"
            path = step_both(case, dtype, steps, number, value)
            assert path == "fused" if not (fraction or there) else path in ("torch", "raised"), (number, kind)


@each_class
def test_explain_names_the_number(case: Case) -> None:
    for name, at in each_number(case):
        ours, _ = started(case.make, F32, 1)
        put(ours, (name, at), torch.tensor(0.5, dtype=F16))
        ours.step()
        name = name if at is None else f"{name.removesuffix('s')}{at + 1}"
        assert {e.reason for e in ours.explain()} == {f"`{name}` is not a plain number of the usual size"}


# What a step does with them, where torch has words of its own for that.
ERRORS = [
    ("sgd", "lr", 1e39, "cannot be converted to type float without overflow"),
    ("sgd-momentum", "weight_decay", 1e39, "cannot be converted to type float without overflow"),
    ("sgd-classic", "lr", 1e39, "cannot be converted to type float without overflow"),
    ("rmsprop", "lr", -1e39, "cannot be converted to type float without overflow"),
    ("adagrad", "lr", 1e39, "cannot be converted to type float without overflow"),
    ("adagrad", "lr_decay", -1.0, "division by zero"),
    ("adam", "lr", 1e39, "cannot be converted to type float without overflow"),
    ("adam", "betas", (1.0, 0.9), "division by zero"),
    ("adam", "weight_decay", True, "Boolean alpha"),
    ("lamb", "lr", 1e39, "cannot be converted to type float without overflow"),
    ("lamb", "betas", (1.0, 0.9), "division by zero"),
    ("swats", "weight_decay", 1e39, "cannot be converted to type float without overflow"),
    ("swats", "betas", (1.0, 0.9), "division by zero"),
    ("delta-bar-delta", "lr", 1e39, "cannot be converted to type float without overflow"),
]


@pytest.mark.parametrize(("name", "option", "value", "message"), ERRORS, ids=str)
def test_error_and_nothing_has_changed(name: str, option: str, value: Any, message: str) -> None:
    # Adagrad's first step is not divided by anything, and SWATS may have switched after a few.
    for steps in (1,) if option == "lr_decay" else (0,) if name == "swats" else (0, 1):
        ours, params = started(BY_NAME[name].make, F32, steps)
        before, ours.param_groups[0][option] = ours.param_groups[0][option], value
        assert_refused(ours, params, Exception, message)
        ours.param_groups[0][option] = before
        ours.step()
        assert {e.path for e in ours.explain()} == {"fused"}


def test_a_group_that_is_refused_leaves_the_others_alone() -> None:
    params = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(8)[::2])]
    opt = fusedopt.AdamW([{"params": [p]} for p in params])
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    opt.param_groups[1]["lr"] = 1e39
    assert_refused(opt, params, RuntimeError, "without overflow")


@pytest.mark.parametrize("value", [1, 0.5, np.bool_(True), torch.tensor(True), torch.tensor([2]), "yes", [0]], ids=repr)
def test_flags_are_whatever_is_true(value: Any) -> None:
    for name, flag in ("adam", "amsgrad"), ("adam", "decoupled_weight_decay"), ("rmsprop", "centered"):
        case = BY_NAME[f"{name}-decay"]
        for option in {flag, "maximize"}:
            (ours, params), (theirs, twins) = (
                started(make, F32, 0) for make in (case.make, lambda params, case=case: make_twin(case, params))
            )
            for opt in ours, theirs:
                opt.param_groups[0][option] = value
                opt.step()
            torch.testing.assert_close(params, twins)
            assert {e.path for e in ours.explain()} == {"fused"}
    with pytest.raises(RuntimeError, match="ambiguous"):
        step_with(fusedopt.SGD, maximize=torch.tensor([True, False]))
    with pytest.raises(RuntimeError, match="ambiguous"):
        step_with(torch.optim.SGD, maximize=torch.tensor([True, False]))


def step_with(cls: type[Optimizer], **options: Any) -> None:
    opt, _ = started(cls, F32, 0)
    opt.param_groups[0] |= options
    opt.step()


def test_unbounded_gains_and_norms_are_fused() -> None:
    for name, options in ("delta-bar-delta", {"max_gain": math.inf}), ("lamb", {"phi": (0.5, math.inf)}):
        ours, _ = started(lambda params, name=name, options=options: BY_NAME[name].make(params, **options), F32, 1)
        ours.step()
        assert {e.path for e in ours.explain()} == {"fused"}


def test_gain_bounds_that_cross() -> None:
    """As torch.clamp: the upper one has the last word."""
    for low, high in (0.5, 0.25), (math.inf, 2.0):
        ours, params = started(lambda params: fusedopt.DeltaBarDelta(params, lr=0.1), F32, 1)
        ours.param_groups[0] |= {"min_gain": low, "max_gain": high}
        ours.step()
        assert all(bool((ours.state[p]["gain"] == high).all()) for p in params)


@pytest.mark.parametrize("pair", [list, torch.tensor, np.array], ids=["list", "tensor", "array"])
def test_pairs_in_any_container(pair: Any) -> None:
    for name, option in ("adam", "betas"), ("lamb", "betas"), ("lamb-phi", "phi"), ("swats", "betas"):
        results = []
        for kind in tuple, pair:
            opt, params = started(BY_NAME[f"{name}-decay"].make, F32, 0)
            opt.param_groups[0][option] = kind([0.5, 0.75])
            opt.step()
            results.append(params)
            # A number in a tensor is one on the GPU where the test's GPU is this CPU.
            fused = not (gpu.ON_CPU and kind is torch.tensor)
            assert {e.path for e in opt.explain()} == {"fused" if fused else "torch"}
        torch.testing.assert_close(*results)
