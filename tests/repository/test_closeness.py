"""The yardstick itself: what it lets pass and what not."""

from __future__ import annotations

import pytest
import torch
from cases import BF16, BY_NAME, CASES, DTYPES, F16, F32, F64, Case, dtype_id
from closeness import Closeness, slack, tolerance, ulp
from torch import Tensor

pytestmark = pytest.mark.one_torch

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


@by_dtype
@pytest.mark.parametrize("value", [1.0, 1.5, 1.999, 2.0, 1000.0, 3e-5, -0.75])
def test_ulp(value: float, dtype: torch.dtype) -> None:
    x = torch.tensor(abs(value), dtype=F64).to(dtype)
    above = torch.nextafter(x, torch.tensor(torch.inf, dtype=dtype))
    assert ulp(x.item(), dtype) == above.double().item() - x.double().item()


@by_dtype
def test_ulp_of_zero(dtype: torch.dtype) -> None:
    zero = torch.zeros((), dtype=dtype)
    assert ulp(0.0, dtype) == torch.nextafter(zero, zero + 1).double().item()


@by_dtype
@pytest.mark.parametrize("sign", [1, -1])
def test_the_slack_is_the_limit_where_torch_is_exact(sign: int, dtype: torch.dtype) -> None:
    reference = torch.tensor([-1.0, 0.25], dtype=F64)
    exact = reference.to(dtype)
    wrong = exact.clone()
    unit = slack(1.0, dtype)
    wrong[1] += sign * unit * 0.9
    tolerance("", wrong, [exact], reference)
    wrong[1] += sign * unit
    with pytest.raises(AssertionError, match="error"):
        tolerance("", wrong, [exact], reference)


def test_twice_torchs_error_is_allowed() -> None:
    reference = torch.tensor([1.0, -2.0, 3.0], dtype=F64)

    def off(by: float) -> Tensor:
        return (reference + torch.tensor([0.0, -by, 0.0])).float()

    tolerance("", off(0.0119), [off(0.01)], reference)
    with pytest.raises(AssertionError, match="rms"):
        tolerance("", off(0.0122), [off(0.01)], reference)
    with pytest.raises(AssertionError, match="error"):
        tolerance("", off(0.021), [off(0.01)], reference)
    with pytest.raises(AssertionError, match="error"):  # the more accurate of the two counts
        tolerance("", off(0.0119), [off(0.01), off(0.0)], reference)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_what_is_not_finite_must_agree_in_position(value: float) -> None:
    reference = torch.tensor([1.0, value], dtype=F64)
    finite = torch.tensor([1.0, 2.0])
    tolerance("", reference.float(), [finite], reference)
    with pytest.raises(AssertionError, match="other places"):
        tolerance("", finite, [finite], reference)
    with pytest.raises(AssertionError, match="has none"):
        tolerance("", reference.float(), [finite], finite.double())


def test_a_rival_that_overflowed_allows_nothing() -> None:
    reference = torch.tensor([1.0, 2.0], dtype=F64)
    lost = torch.tensor([1.0, torch.inf], dtype=F16)
    tolerance("", reference.half(), [lost], reference)
    with pytest.raises(AssertionError):
        tolerance("", torch.tensor([1.0, 2.01], dtype=F16), [lost], reference)
    with pytest.raises(AssertionError, match="has none"):
        tolerance("", lost, [lost], reference)


def test_beyond_the_range_of_the_dtype_infinity_is_right() -> None:
    reference = torch.tensor([1e5], dtype=F64)
    tolerance("", torch.tensor([torch.inf], dtype=F16), [], reference)
    with pytest.raises(AssertionError):
        tolerance("", torch.tensor([65504.0], dtype=F16), [], reference)


def spoil(run: Closeness) -> None:
    """Makes ours an optimizer that has its states and leaves the parameters alone."""
    step = run.ours.step

    def lazy() -> None:
        values = [p.clone() for p in run.params]
        step()
        for p, value in zip(run.params, values, strict=True):
            p.copy_(value)

    run.ours.step = lazy


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [F32, F64], ids=dtype_id)
def test_an_optimizer_that_does_nothing_fails(case: Case, dtype: torch.dtype) -> None:
    run = Closeness(case, [torch.randn(40, dtype=dtype)])
    spoil(run)
    with pytest.raises(AssertionError, match=r"param .* error"):
        run.step([torch.randn(40, dtype=dtype)])


@pytest.mark.parametrize("option", ["eps", "weight_decay", "lr"])
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=dtype_id)
def test_another_hyper_parameter_fails(option: str, dtype: torch.dtype) -> None:
    run = Closeness(BY_NAME["adam-maximize-eps-fast"], [torch.randn(400).to(dtype)])
    run.ours.param_groups[0][option] *= 2
    with pytest.raises(AssertionError, match=r"param .* error"):
        run.step([torch.randn(400).to(dtype)])


def test_a_reference_that_stays_fails() -> None:
    run = Closeness(BY_NAME["sgd"], [torch.randn(40)])
    run.step([torch.zeros(40)])
    with pytest.raises(AssertionError, match="moved by only"):
        run.assert_moved("param")
