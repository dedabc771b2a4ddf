"""A comparison as `fusedopt.compare` makes them, without measuring."""

from __future__ import annotations

from fusedopt.benchmark.implementations import OURS
from fusedopt.benchmark.measured import Measured
from fusedopt.benchmark.results import Comparison
from fusedopt.benchmark.timing import Spread
from fusedopt.benchmark.training import Training


def spread(median):
    return Spread(median, median / 2, median * 2)


def comparison(busy=None, batch=8):
    def row(optimizer, implementation, seconds, ratio, whole=None):
        training = None if whole is None else Training(spread(whole), spread(seconds * 2), seconds * 2 / whole)
        ratios = None if ratio is None else Spread(ratio, ratio, ratio)
        return Measured(optimizer, implementation, spread(seconds), 5, 1, 700, 0.5, 2_400_000, None, ratios, training)

    rows = (
        row("AdamW", OURS, 0.002, 2.0, 1.0),
        row("AdamW", "for-loop", 0.02, 0.2),
        row("AdamW", "fused", 0.004, 1.0, 1.25),
        row("LAMB", OURS, 2e-5, None, 0.5),
    )
    return Comparison(
        "a net", 2, 1234, ("float32",), "a CPU", {"cpu": "x"}, 1e10, rows, ("apex: no",), busy or {}, batch
    )
