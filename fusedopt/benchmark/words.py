"""A comparison as a table of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusedopt.benchmark.implementations import NATIVE, OURS

if TYPE_CHECKING:
    from fusedopt.benchmark.results import Comparison, Measured

LABELS = {OURS: OURS, **{name: f"PyTorch {name}" for name in NATIVE}}
NOT_TORCHS = ("LAMB", "SWATS", "DBD", "DBD-momentum", "DeltaBarDelta")


def table(comparison: Comparison) -> str:
    """All of it, for people."""
    c = comparison
    lines = [
        f"{c.subject}: {c.elements:,} parameters in {c.tensors} tensors, {', '.join(c.dtypes)}",
        f"{c.device}; a copy of large buffers moves {c.copy_bytes_per_second * 1e-9:.1f} GB/s",
        "",
        *_steps(c),
        *(["", *_training(c)] if c.batch is not None else []),
        "",
        *_notes(c),
    ]
    return "\n".join(lines)


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


def size(count: int) -> str:
    """A number of bytes in the unit that suits it."""
    if count == 0:
        return "none"
    unit, factor = ("GB", 1e9) if count >= 1e9 else ("MB", 1e6) if count >= 1e6 else ("kB", 1e3)
    return f"{count / factor:.3g} {unit}"


def _steps(c: Comparison) -> list[str]:
    launches = any(row.launches is not None for row in c.rows)
    head = f"{'one step':<22}{'median':>10}  {'quartiles':<21}{'of a copy':>10}{'state':>10}"
    head += f"{'launches':>10}" if launches else ""
    lines = [head + "  against the fastest of PyTorch"]
    for optimizer in dict.fromkeys(row.optimizer for row in c.rows):
        lines.append(optimizer + _busy(c, optimizer))
        for row in (row for row in c.rows if row.optimizer == optimizer):
            spread = f"{duration(row.seconds.low)} .. {duration(row.seconds.high)}"
            share = "" if row.copy_share is None else f"{row.copy_share:.0%}"
            line = f"  {label(row.implementation):<20}{duration(row.seconds.median):>10}  {spread:<21}{share:>10}"
            line += f"{size(row.state_bytes):>10}" + (f"{'' if row.launches is None else row.launches:>10}" * launches)
            lines.append(f"{line}  {_ratio(row)}".rstrip())
    return lines


def _busy(c: Comparison, optimizer: str) -> str:
    cores = c.busy.get(optimizer)
    return "" if cores is None else f"  (other processes kept {cores:.1f} cores busy: not to be quoted)"


def _ratio(row: Measured) -> str:
    if row.ratio is None:
        return ""
    low, median, high = row.ratio.low, row.ratio.median, row.ratio.high
    return "the fastest" if low == median == high == 1 else f"{median:.2f}x as fast ({low:.2f} .. {high:.2f})"


def _training(c: Comparison) -> list[str]:
    lines = [f"{f'training, batches of {c.batch}':<22}{'median':>10}  {'of it the step':<21}"]
    for optimizer in dict.fromkeys(row.optimizer for row in c.rows):
        lines.append(optimizer + _busy(c, optimizer))
        rows = [row for row in c.rows if row.optimizer == optimizer and row.training is not None]
        for row in rows:
            assert row.training is not None
            step = f"{duration(row.training.step.median)}, {row.training.share:.1%}"
            lines.append(f"  {label(row.implementation):<20}{duration(row.training.seconds.median):>10}  {step}")
        lines += _gain(rows)
    return lines


def _gain(rows: list[Measured]) -> list[str]:
    """What ours can bring to the whole: of the rest of it, which is the same, medians would show the noise."""
    ours = next((row.training for row in rows if row.implementation == OURS), None)
    natives = [row.training for row in rows if row.implementation in NATIVE and row.training is not None]
    if ours is None or not natives:
        return []
    fastest = min(natives, key=lambda training: training.step.median)
    saved = fastest.step.median - ours.step.median
    what = "saves" if saved >= 0 else "costs"
    return [
        f"  against the fastest step of PyTorch, fusedopt's {what} {duration(abs(saved))} of a training step of "
        f"{duration(fastest.seconds.median)}: {abs(saved) / fastest.seconds.median:.1%}"
    ]


def _notes(c: Comparison) -> list[str]:
    lines = [
        "Median and quartiles of interleaved repeats. `of a copy`: the bandwidth that the step's least traffic makes,",
        "against a copy's; above 100% where parameters and states stay in a cache.",
    ]
    if c.batch is None:
        lines += [
            "A step is a part of a training iteration, often a small one: fusedopt bench --batch (in Python, batch=)",
            "times the whole of it, and shows how much of these ratios is left there.",
        ]
    plain = [name for name in dict.fromkeys(row.optimizer for row in c.rows) if name in NOT_TORCHS]
    if plain:
        lines.append(f"PyTorch has no {' and no '.join(plain)}: in its place stands one written in PyTorch operations.")
    lines += [f"Left out: {reason}" for reason in c.left_out]
    if c.busy:
        lines += [
            "WARNING: this machine was busy with other work, and times of such a machine say little: a thread of a",
            "step that waits for its core makes it many times slower. Try again when it is idle.",
        ]
    return lines
