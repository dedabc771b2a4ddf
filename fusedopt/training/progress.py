"""Progress bars for epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Any, TextIO

from fusedopt.extras import named_if_missing
from fusedopt.training.batches import Batch
from fusedopt.training.metrics import Metrics

Progress = Callable[[Iterable[Batch], int, Metrics], Iterable[Batch]]
"""Wraps the batches of an epoch, given their number, and the metrics that the training keeps up to date."""


class ProgressBar:
    """A bar with running loss and accuracy, images per second and the time left; by default only on a terminal.

    Args:
        interval: seconds between two looks at the metrics, each of which waits for the device.
        file: where it is drawn, by default the standard error stream.

    Raises:
        ModuleNotFoundError: tqdm is not installed.
    """

    def __init__(self, interval: float = 0.5, file: TextIO | None = None) -> None:
        with named_if_missing():
            from tqdm import tqdm

        self._interval = interval
        self._options: dict[str, Any] = {"file": file, "disable": None if file is None else False, "mininterval": 0}
        self._tqdm = tqdm

    def __call__(self, batches: Iterable[Batch], count: int, metrics: Metrics) -> Iterator[Batch]:
        """Yields the batches."""
        due = perf_counter() + self._interval
        with self._tqdm(total=metrics.total, unit=" images", unit_scale=True, leave=False, **self._options) as bar:
            for batch in batches:
                yield batch
                if perf_counter() >= due and not bar.disable:
                    running = f"loss {metrics.loss:.4f}, accuracy {100 * metrics.accuracy:.1f} %"
                    bar.set_postfix_str(running, refresh=False)
                    bar.update(metrics.images - bar.n)
                    due = perf_counter() + self._interval
