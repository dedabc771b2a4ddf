"""Pictures of a search. optuna's own leave out the trials that were stopped early."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: nothing global changes, and no display is needed
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

from fusedopt.tuning.space import PARAMETERS

_NAME = "held-out accuracy (%)"
_WHOLE, _STOPPED, _BEST = "#1f6fb4", "#9a9a9a", "#c8553d"
_COLUMNS = 3  # of the slices
_TICKS = 4
_LEAST = 10  # complete trials for importances: of a few, chance decides which is first


def draw_search(study: Study, folder: Path) -> list[Path]:
    """Draws how a search went into `history.png`, `slices.png`, `epochs.png`, and `importances.png`.

    Trials that were stopped early are drawn with their last accuracy. The last picture shows which parameters the
    accuracy depends on most. It needs ten trials that came to their last epoch, and not all with the same accuracy.

    Returns:
        The pictures.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ended = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    drawings: dict[str, Callable[[Sequence[FrozenTrial]], Figure | None]] = {
        "history": _history,
        "slices": _slices,
        "epochs": _epochs,
        "importances": lambda _: _importances(study),
    }
    paths = []
    for name, draw in drawings.items():
        if (figure := draw(ended)) is not None:
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=110)
    return paths


def _accuracy(trial: FrozenTrial) -> float:
    """After its last epoch, in percent."""
    return 100 * (trial.values[0] if _is_whole(trial) else trial.intermediate_values[max(trial.intermediate_values)])


def _is_whole(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE


def _dress(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _history(trials: Sequence[FrozenTrial]) -> Figure:
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    whole, stopped = [t for t in trials if _is_whole(t)], [t for t in trials if not _is_whole(t)]
    numbers = [trial.number for trial in whole]
    best = np.maximum.accumulate([_accuracy(trial) for trial in whole])
    axes.plot(numbers, best, color=_BEST, drawstyle="steps-post", label="best so far")
    axes.plot(numbers, [*map(_accuracy, whole)], "o", color=_WHOLE, label="after the last epoch")
    if stopped:
        accuracies = [*map(_accuracy, stopped)]
        axes.plot([t.number for t in stopped], accuracies, "x", color=_STOPPED, label="when stopped early")
    axes.set(title="Accuracy of each trial", xlabel="trial", ylabel=_NAME)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _dress(axes)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _slices(trials: Sequence[FrozenTrial]) -> Figure:
    names = [name for name in PARAMETERS if any(name in trial.params for trial in trials)]
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.4 * columns + 1, 3.2 * rows + 0.4), layout="constrained")
    cells = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes in cells[len(names) :]:
        axes.remove()
    last = max(trial.number for trial in trials)
    for place, (name, axes) in enumerate(zip(names, cells, strict=False)):
        known = [trial for trial in trials if name in trial.params]
        at = _scale(axes, known[0].distributions[name], [trial.params[name] for trial in known])
        for whole, marker in ((True, "o"), (False, "x")):
            chosen = [i for i, trial in enumerate(known) if _is_whole(trial) == whole]
            if not chosen:
                continue
            points = axes.scatter(
                [at[i] for i in chosen],
                [_accuracy(known[i]) for i in chosen],
                c=[known[i].number for i in chosen],
                marker=marker,
                cmap="viridis_r",
                vmin=0,
                vmax=max(last, 1),
                label="after the last epoch" if whole else "when stopped early",
            )
        axes.set(xlabel=name, ylabel="" if place % columns else _NAME)
        _dress(axes)
    handles, labels = cells[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    ticks = MaxNLocator(integer=True)
    figure.colorbar(points, ax=cells[: len(names)], label="trial", ticks=ticks)
    figure.suptitle("Accuracy over each parameter")
    return figure


def _scale(axes: Axes, distribution: BaseDistribution, values: Sequence[Any]) -> list[float]:
    """Gives the x axis the scale and the ticks of a parameter; returns where its values lie."""
    if isinstance(distribution, CategoricalDistribution):
        labels = [str(choice) for choice in distribution.choices]
        slanted = sum(map(len, labels)) > 20
        axes.set_xticks(range(len(labels)), labels, rotation=30 * slanted, ha="right" if slanted else "center")
        axes.set_xlim(-0.5, len(labels) - 0.5)
        return [distribution.to_internal_repr(value) for value in values]
    at = [float(value) for value in values]
    decades = math.log10(max(at) / min(at)) if distribution.log else 0.0  # type: ignore[attr-defined]
    if distribution.log:  # type: ignore[attr-defined]
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=_TICKS + 1) if decades > 2 else MaxNLocator(_TICKS))
    if len({*at}) == 1:
        axes.set_xticks(at[:1])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return at


def _epochs(trials: Sequence[FrozenTrial]) -> Figure:
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    best = max(filter(_is_whole, trials), key=_accuracy)
    styles: dict[str, tuple[list[FrozenTrial], dict[str, Any]]] = {  # the best on top
        "stopped early": ([t for t in trials if not _is_whole(t)], {"color": _STOPPED, "alpha": 0.7}),
        "to the last epoch": ([t for t in trials if _is_whole(t) and t is not best], {"color": _WHOLE, "alpha": 0.5}),
        f"the best, trial {best.number}": ([best], {"color": _BEST, "linewidth": 2}),
    }
    for label, (chosen, style) in styles.items():
        for i, trial in enumerate(chosen):
            epochs = sorted(trial.intermediate_values)
            accuracies = [100 * trial.intermediate_values[epoch] for epoch in epochs]
            end = "o" if _is_whole(trial) else "x"
            shown = label if i == 0 else "_"  # once
            axes.plot(epochs, accuracies, marker=end, markevery=[len(epochs) - 1], label=shown, **style)
    axes.set(title="Accuracy after each epoch", xlabel="epoch", ylabel=_NAME)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _dress(axes)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _importances(study: Study) -> Figure | None:
    whole = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(whole) < _LEAST or len({trial.values[0] for trial in whole}) == 1:
        return None
    shares = get_param_importances(study)
    if len(shares) < 2:  # one alone is all of it, whatever it does
        return None
    figure = Figure(figsize=(8, 0.5 * len(shares) + 1.4), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(shares)), [100 * share for share in shares.values()], color=_WHOLE)
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.set_yticks(range(len(shares)), [*shares])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(title=f"What the accuracy depends on, by {len(whole)} trials", xlabel="share of its variance (%)")
    _dress(axes)
    axes.grid(visible=False, axis="y")
    return figure
