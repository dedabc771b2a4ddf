"""Checks of arguments: each returns the value, or raises a ValueError that says what it must be."""

from __future__ import annotations

import math
from typing import TypeVar

_N = TypeVar("_N", int, float)
_X = TypeVar("_X")


def at_least(name: str, value: _N, least: int) -> _N:
    """At least `least`, and finite."""
    if not least <= value < math.inf:
        raise ValueError(f"{name} must be at least {least} and finite, not {value}")
    return value


def above_zero(name: str, value: float) -> float:
    """Above 0, and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, not {value}")
    return value


def fraction(name: str, value: float) -> float:
    """From 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, not {value}")
    return value


def start_factor_in_range(value: float) -> float:
    """A factor to start a warm-up from."""
    if not 0 < value <= 1:
        raise ValueError(f"start_factor must be above 0 and at most 1, not {value}: a step at 0 would do nothing")
    return value


def one_of(name: str, value: _X, values: tuple[_X, ...]) -> _X:
    """One of `values`."""
    if value not in values:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, values))}, not {value!r}")
    return value
