"""What a range test found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fusedopt.lr_finder.curve import COMPLETED, DIVERGED, Curve
from fusedopt.lr_finder.plot import new_axes, plot_test
from fusedopt.lr_finder.suggestion import METHODS, estimate_noise, suggest_lr

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LRFinderResult:
    """The curve of a range test and the learning rates read off it.

    Attributes:
        lrs: learning rates of the first parameter group.
        losses: the loss at each, as measured.
        smoothed: its moving average, which the suggestions are read off.
        stopped: why the test ended: "completed", "diverged", or "loss not finite".
        method: the method of `suggestion`, see `suggest_lr`.
        skip_start, skip_end: points at either end that no suggestion looks at.
        noise: standard deviation of `smoothed` around its trend, estimated from `losses`.
        group_scales: the learning rates of the parameter groups relative to the first group's.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    stopped: str = COMPLETED
    method: str = "minimum"
    skip_start: int = 10
    skip_end: int = 5
    noise: float = 0.0
    group_scales: list[float] = field(default_factory=lambda: [1.0])

    @classmethod
    def of(
        cls, curve: Curve, group_scales: Sequence[float], method: str, skip_start: int, skip_end: int
    ) -> LRFinderResult:
        """The result of a range test that filled `curve`."""
        # What the moving average leaves of independent noise.
        share = math.sqrt(curve.smooth_f / (2 - curve.smooth_f)) if curve.smooth_f else 1.0
        noise = share * estimate_noise(curve.losses)
        return cls(
            curve.lrs,
            curve.losses,
            curve.smoothed,
            curve.stopped,
            method,
            skip_start,
            skip_end,
            noise,
            list(group_scales),
        )

    def __repr__(self) -> str:
        """What was tried and what is suggested, without the curve."""
        tried = f"{len(self.lrs)} learning rates"
        tried += f" from {self.lrs[0]:.2e} to {self.lrs[-1]:.2e}" if self.lrs else ""
        try:
            suggested = f"{self.suggestion:.2e}"
        except ValueError:
            suggested = "none"
        return f"LRFinderResult({tried}: {self.stopped}; suggestion: {suggested} ({self.method}))"

    def suggest(self, method: str) -> float:
        """The suggestion of one method, see `suggest_lr`.

        Raises:
            ValueError: the curve does not support one; the message says what to change.
        """
        finite = sum(map(math.isfinite, self.smoothed))
        if self.stopped != COMPLETED and 0 < finite < self.skip_start + self.skip_end + 2:
            what = "diverged" if self.stopped == DIVERGED else "was not finite any more"
            raise ValueError(
                f"the loss {what} at {self.lrs[-1]:.2e}, after {finite} points, which are too few: with "
                f"skip_start={self.skip_start} and skip_end={self.skip_end} it takes at least "
                f"{self.skip_start + self.skip_end + 2}; lower start_lr, or skip fewer"
            )
        return suggest_lr(self.lrs, self.smoothed, method, self.skip_start, self.skip_end, noise=self.noise)

    @property
    def suggestion(self) -> float:
        """The learning rate to train with, for the first parameter group.

        Raises:
            ValueError: the curve does not support one; the message says what to change.
        """
        return self.suggest(self.method)

    @property
    def group_lrs(self) -> list[float]:
        """`suggestion` for every parameter group."""
        return [scale * self.suggestion for scale in self.group_scales]

    @property
    def suggestions(self) -> dict[str, float]:
        """The suggestions of all methods that have one, by name."""
        return {method: lr for method, lr in self._outcomes().items() if isinstance(lr, float)}

    @property
    def refusals(self) -> dict[str, str]:
        """Why the other methods have none, by name."""
        return {method: str(error) for method, error in self._outcomes().items() if isinstance(error, ValueError)}

    def _outcomes(self) -> dict[str, float | ValueError]:
        outcomes: dict[str, float | ValueError] = {}
        for method in METHODS:
            try:
                outcomes[method] = self.suggest(method)
            except ValueError as error:
                outcomes[method] = error
        return outcomes

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws raw and smoothed losses over the learning rate, the suggestions, and where the loss diverged.

        Args:
            ax: matplotlib axes to draw into; None makes a figure. Nothing is shown: call `plt.show()` for that.

        Returns:
            The axes.
        """
        return plot_test(
            ax or new_axes(),
            self.lrs,
            self.losses,
            self.smoothed,
            looked_at=slice(self.skip_start, max(len(self.lrs) - self.skip_end, self.skip_start)),
            stopped=self.stopped,
            suggestions=self.suggestions,
            method=self.method,
            refusal=self.refusals.get(self.method),
        )
