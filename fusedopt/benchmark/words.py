"""Names, times and sizes for people."""

from __future__ import annotations

from fusedopt.benchmark.implementations import NATIVE, OURS

LABELS = {OURS: OURS, **{name: f"PyTorch {name}" for name in NATIVE}}


def label(implementation: str) -> str:
    """An implementation's name for people."""
    return LABELS.get(implementation, implementation)


def unit(seconds: float) -> tuple[str, float]:
    """The unit that suits a time, and how many of it are a second."""
    return ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)


def duration(seconds: float) -> str:
    """A time in the unit that suits it, with three digits."""
    name, factor = unit(seconds)
    number = seconds * factor
    return f"{number:.0f} {name}" if number >= 100 else f"{number:.3g} {name}"


def factor(ratio: float) -> str:
    """A ratio with three digits, which is more than most runs can tell."""
    return f"{ratio:.2g}" if ratio < 0.1 else f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def size(count: int) -> str:
    """A number of bytes in the unit that suits it."""
    if count == 0:
        return "none"
    unit, factor = ("GB", 1e9) if count >= 1e9 else ("MB", 1e6) if count >= 1e6 else ("kB", 1e3)
    return f"{count / factor:.3g} {unit}"
