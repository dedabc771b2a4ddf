"""Parameters whose states are stored in other dtypes, and how close those must be."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from cases import BF16, F32, Case
from torch import Tensor

# Vectors of every instruction set, whole and not, more than one chunk, none.
SHAPES = [(3, 5), (16,), (16 * 1024 + 37,), (), (0, 4)]


def may_be_stored_in(case: Case, state_dtype: Any) -> bool:
    """Whether a case takes that option: the difference of two states that are rounded may be anything."""
    return state_dtype in (None, F32) or not case.kwargs.get("centered")


def in_formats(formats: dict[str, dict[str, Any]], cases: list[Case]) -> pytest.MarkDecorator:
    """Each `case` in each of the `formats`, by name, that it takes."""
    pairs = [(c, name) for c in cases for name, f in formats.items() if may_be_stored_in(c, f.get("state_dtype"))]
    return pytest.mark.parametrize(("case", "formats"), pairs, ids=str)


def parameters(dtype: torch.dtype, shapes: Any = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def give_gradients(params: list[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step + 1)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=generator) * 0.3).to(p.dtype)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def assert_close(actual: Tensor, expected: Tensor, roundings: int = 1) -> None:
    """Up to one rounding to what they are stored in; up to several to bfloat16."""
    largest = expected.abs().max().item() if expected.numel() else 0
    eps = torch.finfo(expected.dtype if roundings == 1 else BF16).eps
    torch.testing.assert_close(
        actual, expected, rtol=roundings * eps * 1.01, atol=1e-5 * largest * 100 ** (roundings - 1)
    )


def saved(opt: Any) -> Any:
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)
