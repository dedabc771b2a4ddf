"""What a run prints: the machine, a row per measurement, geometric means, and a summary for the README."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fusedopt.benchmark.implementations import OURS
from fusedopt.benchmark.parameter_sets import SETS
from fusedopt.benchmark.timing import Spread


@dataclass(frozen=True)
class Row:
    """One implementation's step on one parameter set.

    ``ratio`` is how many times faster than the fastest native implementation the step is; ``loop_share`` is its share
    of the bandwidth that the hand-written loop reaches. Both come from the repeats of one run. ``busy_elsewhere`` is
    the number of cores that other processes used meanwhile.
    """

    optimizer: str
    parameter_set: str
    implementation: str
    tensors: int
    elements: int
    dtype: str
    repeats: int
    calls: int
    us: Spread
    bytes: int
    gb_per_s: float
    loop_share: float
    fastest_native: str | None
    ratio: Spread | None
    busy_elsewhere: float


HEADER = (
    f"{'optimizer':<13}{'parameters':<12}{'implementation':<15}{'median µs':>11}  {'quartiles':<23}{'GB/s':>6}"
    f"{'of loop':>9}  {'vs fastest native':<24}{'repeats':>9}"
)


def format_row(row: Row) -> str:
    """One line of the table under ``HEADER``."""
    quartiles = f"{row.us.low:,.1f} .. {row.us.high:,.1f}"
    ratio = "" if row.ratio is None else f"{row.ratio.median:.2f}x ({row.ratio.low:.2f} .. {row.ratio.high:.2f})"
    return (
        f"{row.optimizer:<13}{row.parameter_set:<12}{row.implementation:<15}{row.us.median:>11,.1f}  {quartiles:<23}"
        f"{row.gb_per_s:>6.1f}{row.loop_share:>9.0%}  {ratio:<24}{row.repeats:>4} x {row.calls}"
    )


def geometric_means(rows: Iterable[Row]) -> dict[str, float]:
    """The geometric mean of our ratios over the parameter sets, for each optimizer and (``all``) over everything."""
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if row.implementation == OURS and row.ratio is not None:
            ratios.setdefault(row.optimizer, []).append(row.ratio.median)
    means = {optimizer: statistics.geometric_mean(values) for optimizer, values in ratios.items()}
    if means:
        means["all"] = statistics.geometric_mean([ratio for values in ratios.values() for ratio in values])
    return means


def print_geometric_means(rows: Sequence[Row]) -> None:
    """Print the geometric means, or nothing where ours was not timed against a native implementation."""
    means = geometric_means(rows)
    if means:
        print("\ngeometric mean over the parameter sets, fusedopt vs the fastest native implementation")
    for optimizer, mean in means.items():
        print(f"  {optimizer:<13}{mean:.2f}x")


def disturbed(rows: Iterable[Row], cores: float = 0.1) -> list[str]:
    """The cases that were timed while other processes kept more than ``cores`` cores busy."""
    busy = {f"{row.optimizer} {row.parameter_set}": row.busy_elsewhere for row in rows if row.busy_elsewhere > cores}
    return [f"{case} ({value:.1f} cores)" for case, value in busy.items()]


def print_warning(rows: Sequence[Row]) -> None:
    """Say which cases were disturbed, if any were."""
    cases = disturbed(rows)
    if cases:
        print("\nWARNING: other processes kept cores busy during these cases; time them again on an idle machine:")
        print(f"  {', '.join(cases)}")


def as_json(description: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Everything a run measured."""
    return {"machine": description, "rows": [asdict(row) for row in rows], "geometric_means": geometric_means(rows)}


def markdown(description: dict[str, Any], rows: Sequence[Row]) -> str:
    """A table of our ratios: a line per optimizer, a column per parameter set."""
    ours = {(row.optimizer, row.parameter_set): row for row in rows if row.implementation == OURS}
    sets = in_order(name for _, name in ours)
    means = geometric_means(rows)

    def cell(row: Row | None) -> str:
        return "" if row is None or row.ratio is None else f"{row.ratio.median:.2f}x vs {row.fastest_native}"

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [
        line(["optimizer", *(SETS[name].title for name in sets), "geometric mean"]),
        line(["---"] + ["---:"] * (len(sets) + 1)),
    ]
    for optimizer in in_order(name for name, _ in ours):
        mean = f"{means[optimizer]:.2f}x" if optimizer in means else ""
        lines.append(line([optimizer, *(cell(ours.get((optimizer, name))) for name in sets), mean]))
    lines += [
        "",
        f"How many times faster a step is than the fastest of PyTorch's own implementations of the same optimizer. "
        f"{description['cpu']}, {description['threads']} threads, PyTorch {description['torch']}.",
    ]
    if disturbed(rows):
        lines[-1] += " **Not to be quoted: other processes kept cores busy meanwhile.**"
    return "\n".join(lines)


def in_order(names: Iterable[str]) -> list[str]:
    """The distinct names in the order of their first appearance."""
    return list(dict.fromkeys(names))
