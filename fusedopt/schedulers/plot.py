"""Pictures of schedules. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch.optim.lr_scheduler import LRScheduler

from fusedopt.schedulers.simulate import Simulation, simulate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LR, _MOMENTUM = "#1f6fb4", "#c8553d"


def plot_schedules(
    schedules: Sequence[LRScheduler] | Mapping[str, LRScheduler],
    steps: int,
    metrics: Sequence[float] | None = None,
    columns: int = 3,
) -> Figure:
    """Draws the learning rate of each schedule over its next steps, one panel each, and the momentum where it changes.

    Args:
        schedules: any that `simulate` takes; with the titles of their panels, or those are the names of the classes.
        steps: number of steps to draw.
        metrics: as in `simulate`, for all of the schedules.
        columns: number of panels side by side.

    Returns:
        A matplotlib Figure, to be shown by a notebook or saved with `savefig`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: there is no schedule; and as in `simulate`.
    """
    if isinstance(schedules, Mapping):
        titles, drawn = list(schedules), list(schedules.values())
    else:
        titles, drawn = [type(schedule).__name__ for schedule in schedules], list(schedules)
    return plot_simulations(titles, [simulate(schedule, steps, metrics) for schedule in drawn], columns)


def plot_simulations(titles: Sequence[str], simulations: Sequence[Simulation], columns: int = 3) -> Figure:
    """Draws what `simulate` returned; as in `plot_schedules`."""
    if not simulations:
        raise ValueError("there is nothing to draw; pass at least one schedule")
    try:
        from matplotlib.figure import Figure  # without pyplot: nothing global changes, and no display is needed
    except ModuleNotFoundError as error:
        message = "matplotlib is not installed; pip install 'fusedopt[examples]'"
        raise ModuleNotFoundError(message, name="matplotlib") from error
    columns = min(columns, len(simulations))
    rows = math.ceil(len(simulations) / columns)
    figure = Figure(figsize=(1 + 4 * columns, 0.4 + 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, title, simulation in zip(panels, titles, simulations, strict=False):
        _draw(panel, title, simulation)
    for panel in panels[len(simulations) :]:
        panel.set_axis_off()
    figure.supxlabel("step", fontsize=10)
    return figure


def _draw(panel: Axes, title: str, simulation: Simulation) -> None:
    # A dot for each step where they can be told apart: what is drawn between them is not a learning rate.
    marker = "o" if len(simulation.lr) <= 64 else ""
    panel.set_title(title, loc="left", fontsize=11)
    for lr in simulation.lr.unbind(1):
        panel.plot(lr.tolist(), color=_LR, marker=marker, markersize=3, linewidth=1.2)
    panel.set_ylim(0, 1.08 * float(simulation.lr.max()) or 1)
    panel.yaxis.set_major_formatter("{x:g}")
    panel.set_ylabel("learning rate", color=_LR, fontsize=9)
    panel.locator_params(axis="x", integer=True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(linewidth=0.3)
    if simulation.changes_momentum:
        other = panel.twinx()
        for momentum in simulation.momentum.unbind(1):
            other.plot(momentum.tolist(), color=_MOMENTUM, linestyle="--", linewidth=1.2)
        other.set_ylabel("momentum", color=_MOMENTUM, fontsize=9)
        other.spines[["top", "left"]].set_visible(False)
