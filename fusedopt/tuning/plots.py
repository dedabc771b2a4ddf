"""Pictures of a search, by optuna."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from optuna import Study
from optuna.trial import TrialState
from optuna.visualization import matplotlib as visualization

_NAME = "held-out accuracy"


def draw_search(study: Study, folder: Path) -> list[Path]:
    """Draws how a search went into `history.png`, `slices.png`, `epochs.png`, and `importances.png`.

    The last shows which parameters the accuracy depends on most, and needs at least two different accuracies.

    Returns:
        The pictures.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    drawings: dict[str, Callable[[], Any]] = {
        "history": lambda: visualization.plot_optimization_history(study, target_name=_NAME),
        "slices": lambda: visualization.plot_slice(study, target_name=_NAME),
        "epochs": lambda: _epochs(study),
    }
    if len({trial.values[0] for trial in complete}) > 1 and len(study.best_trial.params) > 1:
        drawings["importances"] = lambda: visualization.plot_param_importances(study, target_name=_NAME)
    return [_draw(draw, folder / f"{name}.png") for name, draw in drawings.items()]


def _epochs(study: Study) -> Axes:
    axes = visualization.plot_intermediate_values(study)
    axes.set(title="Accuracy after Each Epoch", xlabel="epoch", ylabel=_NAME)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


def _draw(draw: Callable[[], Any], path: Path) -> Path:
    # optuna draws with pyplot and a style of its own: neither is left behind.
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the functions are experimental, that one value makes no axis
        matplotlib.use("agg")
        from matplotlib import pyplot

        axes = draw()
        figure = (axes if hasattr(axes, "figure") else axes.flat[0]).figure
        try:
            figure.savefig(path, dpi=110, bbox_inches="tight")
        finally:
            pyplot.close(figure)
    return path
