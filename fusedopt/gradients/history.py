"""What `capture` recorded: values, plots, a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusedopt import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BANDS = ((0.05, 0.95, "middle 90 %"), (0.25, 0.75, "middle 50 %"))
_COLORS = {"gradients": "#c8553d", "parameters": "#1f6fb4"}


@dataclass
class History:
    """Gradients and parameters over time.

    Attributes:
        steps: the steps that were recorded, counted from 0 at the beginning of the block, rising.
        gradients: for each parameter's name, [len(steps), values] of its gradient; NaN where it had none.
        parameters: for each parameter's name, [len(steps), values] of itself, before the step.
        epochs: how many steps had been taken at the end of each epoch, where the training noted it.
    """

    steps: list[int] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)

    def quantiles(self, kind: str, name: str, probabilities: Sequence[float]) -> Tensor:
        """Returns [len(probabilities), len(steps)], quantiles over the values of each record, NaN where there are none.

        Args:
            kind: "gradients" or "parameters".
            name: of the parameter.
            probabilities: 0 to 1.
        """
        rows: Tensor = self._kinds()[kind][name]
        # torch.quantile takes no more than 2^24 elements; row by row it is enough for any tensor that was sampled.
        wanted = torch.tensor(probabilities, dtype=rows.dtype, device=rows.device)
        return torch.stack([torch.nanquantile(row, wanted) for row in rows], dim=1)

    def plot(self, names: Sequence[str] | None = None) -> Figure:
        """Draws the distributions over time: a row for each parameter, a column for gradients and for parameters.

        Lines are medians; bands hold the middle 50 % and 90 % of the values.

        Args:
            names: of the parameters to draw, in that order; None draws the first 8 whose name ends in "weight",
                or the first 8 of all where there are none.

        Returns:
            A matplotlib figure, to show in a notebook or to save with `.savefig(path)`.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: nothing was recorded, or a name is not among what was.
        """
        try:
            from matplotlib.figure import Figure  # without pyplot: nothing global changes, and no display is needed
        except ModuleNotFoundError as error:
            text = "History.plot needs matplotlib, which is not installed; pip install 'fusedopt[examples]'"
            raise ModuleNotFoundError(text, name="matplotlib") from error

        kinds = {kind: rows for kind, rows in self._kinds().items() if rows}
        if not self.steps or not kinds:
            raise ValueError("nothing was recorded: no optimizer stepped on the model inside the block")
        known = list(next(iter(kinds.values())))
        names = self._weights(known) if names is None else list(names)
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{unknown[0]!r} was not recorded; there are {', '.join(known)}")

        figure = Figure(figsize=(5.5 * len(kinds), 0.8 + 1.9 * len(names)), layout="constrained")
        panels = figure.subplots(len(names), len(kinds), squeeze=False, sharex=True)
        for name, row in zip(names, panels, strict=True):
            for kind, axes in zip(kinds, row, strict=True):
                self._draw(axes, kind, name)
            row[0].set_ylabel(name)
        for kind, axes in zip(kinds, panels[0], strict=True):
            axes.set_title(kind, pad=24)
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9, frameon=False)
        for axes in panels[-1]:
            axes.set_xlabel("step")
        return figure

    def _draw(self, axes: Axes, kind: str, name: str) -> None:
        color = _COLORS[kind]
        for low, high, label in _BANDS:
            edges = self.quantiles(kind, name, (low, high)).cpu().numpy()
            axes.fill_between(self.steps, edges[0], edges[1], color=color, alpha=0.3, linewidth=0, label=label)
        median = self.quantiles(kind, name, (0.5,))[0].cpu().numpy()
        axes.plot(self.steps, median, color=color, linewidth=1.2, label="median")
        axes.grid(alpha=0.3)

    @staticmethod
    def _weights(names: list[str]) -> list[str]:
        weights = [name for name in names if name.endswith("weight")]
        return (weights or names)[:8]

    def save(self, path: Path | str) -> None:
        """Writes the history to a file, whole or not at all.

        Raises:
            fusedopt.files.FileError: it cannot be written; what was there before is still there.
        """
        # Copies: a row is a view into the memory of all the records there may come to be.
        kinds = {kind: {name: rows.cpu().clone() for name, rows in of.items()} for kind, of in self._kinds().items()}
        files.save(Path(path), "history", {"steps": self.steps, "epochs": self.epochs, **kinds})

    @classmethod
    def load(cls, path: Path | str) -> History:
        """Reads what `save` wrote; the tensors are on the CPU. Code in the file is not run.

        Raises:
            fusedopt.files.FileError: it is missing, not a history, or damaged.
        """
        content = files.load(Path(path), "history")
        return cls(content["steps"], content["gradients"], content["parameters"], content.get("epochs", []))

    def _kinds(self) -> dict[str, dict[str, Tensor]]:
        return {"gradients": self.gradients, "parameters": self.parameters}
