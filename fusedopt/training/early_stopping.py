"""When to stop, and which epoch was the best."""

from __future__ import annotations

import math


class EarlyStopping:
    """Keeps the best value of a metric, and counts the epochs since.

    Args:
        patience: epochs in a row without a better value after which it is over; None is never.

    Attributes:
        best: the highest value so far.
        waited: epochs since.
    """

    def __init__(self, patience: int | None = None) -> None:
        self.patience = patience
        self.best, self.waited = -math.inf, 0

    @property
    def over(self) -> bool:
        """Whether to stop."""
        return self.patience is not None and self.waited >= self.patience

    def update(self, metric: float) -> bool:
        """Takes the value of an epoch; returns whether it is better than all before. NaN never is."""
        better = metric > self.best
        self.best, self.waited = (metric, 0) if better else (self.best, self.waited + 1)
        return better

    def state_dict(self) -> dict[str, float]:
        """Returns the best value and the number of epochs since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from a state."""
        self.best, self.waited = state["best"], int(state["waited"])
