"""What is measured of one implementation."""

from __future__ import annotations

from dataclasses import dataclass

from fusedopt.benchmark.timing import Spread
from fusedopt.benchmark.training import Training


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
