"""What a comparison found, to be printed, saved and drawn."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedopt.benchmark.implementations import NATIVE, OURS, in_torch
from fusedopt.benchmark.measured import Measured
from fusedopt.benchmark.words import duration, factor, label, size

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured; prints as a table.

    Attributes:
        subject: what it was measured on.
        tensors, elements, dtypes, device: the parameters.
        machine: what the numbers depend on.
        copy_bytes_per_second: of a copy of large buffers, counted as read and written.
        rows: a row for each implementation.
        left_out: what could not be timed, with the reason.
        busy: for each optimizer during which other processes kept more than a tenth of a core busy, how many cores.
        batch: inputs of a whole training step, None without.
    """

    subject: str
    tensors: int
    elements: int
    dtypes: tuple[str, ...]
    device: str
    machine: dict[str, Any]
    copy_bytes_per_second: float
    rows: tuple[Measured, ...]
    left_out: tuple[str, ...]
    busy: dict[str, float]
    batch: int | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.subject}: {self.elements:,} parameters in {self.tensors} tensors, {', '.join(self.dtypes)}",
            f"{self.device}; a copy of large buffers moves {self.copy_bytes_per_second * 1e-9:.1f} GB/s",
            "",
            *_steps(self),
            *(["", *_training(self)] if self.batch is not None else []),
            "",
            *_notes(self),
        ]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return dataclasses.asdict(self)

    def plot(self, path: Path | str) -> Figure:
        """Draws the table as bars into a file; needs matplotlib."""
        from fusedopt.benchmark.picture import plot_rows

        title = f"{self.subject}: {self.elements:,} parameters in {self.tensors} tensors\n{self.device}"
        return plot_rows(self.rows, Path(path), title, batch=self.batch, busy=self.busy)


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
    if low == median == high == 1:
        return "the fastest"
    return f"{factor(median)}x as fast ({factor(low)} .. {factor(high)})"


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
        "against a copy's; above 100% where parameters and states stay in a cache, or other work slowed the copy.",
    ]
    if c.batch is None:
        lines += [
            "A step is a part of a training iteration, often a small one: fusedopt bench --batch (in Python, batch=)",
            "times the whole of it, and shows how much of these ratios is left there.",
        ]
    plain = [name for name in dict.fromkeys(row.optimizer for row in c.rows) if not in_torch(name)]
    if plain:
        lines.append(f"PyTorch has no {' and no '.join(plain)}: in its place stands one written in PyTorch operations.")
    lines += [f"Left out: {reason}" for reason in c.left_out]
    if c.busy:
        lines += [
            "WARNING: this machine was busy with other work, and times of such a machine say little: a thread of a",
            "step that waits for its core makes it many times slower. Try again when it is idle.",
        ]
    return lines
