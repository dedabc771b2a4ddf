"""The pictures of a search: every trial that ended is in them, and ticks can be read."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

optuna = pytest.importorskip("optuna", reason="optuna is not installed")

from optuna.distributions import CategoricalDistribution, FloatDistribution  # noqa: E402
from optuna.trial import TrialState, create_trial  # noqa: E402

from fusedopt.tuning import draw_search  # noqa: E402

pytestmark = pytest.mark.one_torch
OPTIMIZERS = ("torch.delta-bar-delta", "torch.rmsprop", "sgd", "adamw")
SPACE = {
    "optimizer": CategoricalDistribution(OPTIMIZERS),
    "lr": FloatDistribution(1e-4, 0.1, log=True),
    "weight-decay": FloatDistribution(0.001, 0.0015, log=True),
    "momentum": FloatDistribution(0.5, 0.99),
    "batch-size": CategoricalDistribution((16, 32, 64, 128)),
}


def study_of(whole: int, stopped: int = 0, space: dict = SPACE) -> optuna.Study:
    """A study with so many trials, those that were stopped early among the others."""
    study = optuna.create_study(direction="maximize")
    for number in range(whole + stopped):
        share = number / max(whole + stopped - 1, 1)
        params = {
            name: dimension.choices[number % len(dimension.choices)]
            if isinstance(dimension, CategoricalDistribution)
            else dimension.low * (dimension.high / dimension.low) ** share
            for name, dimension in space.items()
        }
        is_whole = number % 2 == 0 or number >= 2 * stopped
        accuracies = {epoch: 0.3 + 0.01 * number + 0.05 * epoch for epoch in range(1, 5 if is_whole else 3)}
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if is_whole else TrialState.PRUNED,
                value=accuracies[max(accuracies)],
                params=params,
                distributions=space,
                intermediate_values=accuracies,
            )
        )
    return study


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Draws a study; gives the figures by name, drawn as they are written."""

    def draw(study: optuna.Study) -> dict[str, Figure]:
        figures: dict[str, Figure] = {}
        save = Figure.savefig

        def keep(figure: Figure, path: Path, **options: float) -> None:
            figures[path.stem] = figure
            save(figure, path, **options)

        monkeypatch.setattr(Figure, "savefig", keep)
        paths = draw_search(study, tmp_path / "out")
        assert [path.stem for path in paths] == [*figures]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
        return figures

    return draw


def points(axes: Axes) -> set[tuple[float, float]]:
    """Everything that is marked in axes."""
    marked = [collection.get_offsets().tolist() for collection in axes.collections]
    lines = [line.get_xydata() for line in axes.lines if line.get_marker() not in ("None", "")]
    marked += [line.tolist() for line in lines]
    return {(x, round(y, 6)) for group in marked for x, y in group}


def test_trials_that_were_stopped_early_are_shown(draw):
    study = study_of(6, stopped=5)
    figures = draw(study)
    last = {t.number: round(100 * t.intermediate_values[max(t.intermediate_values)], 6) for t in study.trials}
    assert points(figures["history"].axes[0]) == set(last.items())
    rates = next(axes for axes in figures["slices"].axes if axes.get_xlabel() == "lr")
    assert points(rates) == {(t.params["lr"], last[t.number]) for t in study.trials}
    curves = [line.get_xydata().tolist() for line in figures["epochs"].axes[0].lines]
    assert sorted(map(len, curves)) == [2] * 5 + [4] * 6
    for name in ("history", "slices", "epochs"):
        (legend,) = figures[name].legends
        assert any("stopped early" in text.get_text() for text in legend.get_texts())


def test_where_none_was_stopped_none_is_in_the_legend(draw):
    for figure in draw(study_of(4)).values():
        texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert not any("stopped" in text for text in texts), texts


def ticks(axis: Axis) -> list[Text]:
    """The labels of an axis that can be seen."""
    low, high = sorted(axis.get_view_interval())
    labels = [*axis.get_majorticklabels(), *axis.get_minorticklabels()]
    direction = 0 if axis.axis_name == "x" else 1
    return sorted(
        (text for text in labels if text.get_text() and low <= text.get_position()[direction] <= high),
        key=lambda text: text.get_position()[direction],
    )


@pytest.mark.parametrize(
    "lr", [(1e-4, 0.1), (1e-7, 1.0), (0.03, 0.04), (0.001, 0.0015), (0.01, 0.2), (0.02, 0.021), (1e-9, 1e3)]
)
@pytest.mark.parametrize("trials", [1, 2, 20])
def test_no_tick_lies_upon_another(draw, lr, trials):
    space = {**SPACE, "lr": FloatDistribution(*lr, log=True)}
    for name, figure in draw(study_of(trials, space=space)).items():
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                labels = ticks(axis)
                boxes = [label.get_window_extent() for label in labels]
                if labels and labels[0].get_rotation():  # the boxes of slanted words overlap, the words do not
                    assert all(b.x1 - a.x1 > 1.2 * labels[0].get_fontsize() for a, b in pairwise(boxes))
                else:
                    assert not any(a.overlaps(b) for a, b in pairwise(boxes)), (name, [t.get_text() for t in labels])
            assert name != "slices" or ticks(axes.xaxis) or ticks(axes.yaxis)


@pytest.mark.parametrize(
    ("whole", "stopped", "space", "drawn"),
    [
        (2, 0, SPACE, False),
        (9, 9, SPACE, False),
        (10, 9, SPACE, True),
        (10, 0, {"lr": SPACE["lr"]}, False),
    ],
)
def test_importances_need_enough_trials_and_several_parameters(draw, whole, stopped, space, drawn):
    figures = draw(study_of(whole, stopped, space))
    assert ("importances" in figures) == drawn
    if drawn:
        (axes,) = figures["importances"].axes
        shares = [bar.get_width() for bar in axes.patches]
        assert sum(shares) == pytest.approx(100)
        assert {label.get_text() for label in axes.get_yticklabels()} == {*space}


def test_importances_need_different_accuracies(draw):
    study = optuna.create_study(direction="maximize")
    for trial in study_of(12).trials:
        trial.values, trial.intermediate_values = [0.5], {1: 0.5}
        study.add_trial(trial)
    assert "importances" not in draw(study)
