"""What a comparison found, to be printed, saved and drawn."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedopt.benchmark.timing import Spread
from fusedopt.benchmark.training import Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Measured:
    """One implementation of one optimizer.

    Attributes:
        optimizer, implementation: names.
        seconds: of a step, over the repeats.
        repeats, calls: how often it was timed, and how many steps each time.
        step_bytes: the least that the rule has to read and write in a step; None where it is not known.
        copy_share: the bandwidth that `step_bytes` makes in the median step, of that of a copy. Above 1 where the
            operands stay in a cache.
        state_bytes: of the optimizer's state.
        launches: kernels in a step, None where there is no GPU or its profiler may not be used.
        ratio: how many times faster than the fastest of torch's, from the ratios within the repeats; None where there
            is none of torch's.
        training: of a whole training step, where one was asked for.
    """

    optimizer: str
    implementation: str
    seconds: Spread
    repeats: int
    calls: int
    step_bytes: int | None
    copy_share: float | None
    state_bytes: int
    launches: int | None
    ratio: Spread | None
    training: Training | None = None


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
        from fusedopt.benchmark.words import table

        return table(self)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return dataclasses.asdict(self)

    def plot(self, path: Path | str) -> Figure:
        """Draws the table as bars into a file; needs matplotlib."""
        from fusedopt.benchmark.picture import plot_comparison

        return plot_comparison(self, Path(path))
