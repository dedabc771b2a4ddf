"""What a range test shows: the result, its picture, torch_lr_finder's plot, and the command."""

import builtins
import math
import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fusedopt
from fusedopt.lr_finder import LRFinder, LRFinderResult, suggest_lr
from fusedopt.lr_finder.curve import ramp

pytestmark = pytest.mark.usefixtures("one_thread")
matplotlib.use("Agg")


def typical(stopped="diverged"):
    lrs = ramp(1e-6, 1.0, 61)
    smoothed = [2.3 - 1.8 / (1 + (1e-2 / lr) ** 1.5) + (1.5 * math.log10(lr / 0.1) if lr > 0.1 else 0) for lr in lrs]
    losses = [loss + 0.1 * math.sin(7 * i) for i, loss in enumerate(smoothed)]
    if stopped == "diverged":
        smoothed[-1] = 30.0
    if stopped == "loss not finite":
        losses[-1] = smoothed[-1] = math.nan
    return LRFinderResult(lrs, losses, smoothed, stopped, noise=0.01)


@pytest.fixture
def axes():
    return Figure().subplots()


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("a plot called show()"))
    yield
    plt.close("all")


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_suggestions_of_all_methods_and_reasons_of_the_others():
    result = replace(typical(), skip_start=32, skip_end=15)
    methods = ("steepest", "valley", "minimum")
    lrs = {m: suggest_lr(result.lrs, result.smoothed, m, 32, 15, noise=0.01) for m in methods}
    assert result.suggestions == lrs
    assert list(result.refusals) == ["slide"]
    assert result.suggestion == lrs["minimum"]
    with pytest.raises(ValueError, match="window is 15 wide"):
        result.suggest("slide")


def test_the_picture_has_both_curves_each_suggestion_by_name_and_the_divergence(axes):
    result = typical()
    assert result.plot(axes) is axes
    labels = legend(axes)
    assert labels[:2] == ["loss of each step", "smoothed"]
    for method, lr in result.suggestions.items():
        (label,) = [text for text in labels if text.startswith(f"{method}: {lr:.2e}")]
        assert ("suggested" in label) == (method == "minimum")
    assert labels[-1] == "diverged at 1.00e+00"
    assert axes.get_xscale() == "log"
    low, high = axes.get_ylim()
    assert low < min(result.losses)
    assert max(result.smoothed[:40]) < high < 6  # not up to the 30 of the last point


def test_the_picture_of_a_test_that_completed_or_met_nan(axes):
    typical("completed").plot(axes)
    assert not any("diverged" in text for text in legend(axes))
    other = typical("loss not finite").plot(Figure().subplots())
    assert legend(other)[-1] == "not finite at 1.00e+00"


def test_without_axes_a_figure_is_made():
    import matplotlib.pyplot as plt

    figure = typical().plot().figure
    assert figure.number in plt.get_fignums()  # so that plt.show() shows it
    plt.close(figure)


def test_a_curve_without_a_suggestion_is_drawn_with_the_reason(axes):
    lrs = ramp(1e-5, 1.0, 40)
    flat = LRFinderResult(lrs, [1.0] * 40, [1.0] * 40)
    flat.plot(axes)
    assert axes.get_title() == "No suggestion: the loss never falls"
    LRFinderResult([], [], []).plot(Figure().subplots())
    LRFinderResult([1.0], [math.nan], [math.nan], "loss not finite").plot(Figure().subplots())


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")
        return real(name, *args, **kwargs)

    result = typical()
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match=r"fusedopt\[examples\]") as caught:
        result.plot()
    assert caught.value.name == "matplotlib"


@pytest.fixture
def finder():
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    inputs = torch.randn(64, 8)
    finder = LRFinder(model, fusedopt.SGD(model.parameters(), lr=1e-4, momentum=0.5), nn.MSELoss())
    finder.range_test(DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), 64), end_lr=100, num_iter=100)
    return finder


def test_plot_returns_what_torch_lr_finders_does(finder, axes, capsys):
    ax, lr = finder.plot(ax=axes)
    assert ax is axes
    inner = slice(10, -5)
    point = int(np.gradient(finder.history["loss"][inner]).argmin())
    assert lr == finder.history["lr"][inner][point]
    assert f"LR suggestion: steepest gradient\nSuggested LR: {lr:.2E}" in capsys.readouterr().out
    (line,) = ax.lines
    assert list(line.get_xdata()) == finder.history["lr"][10:-5]
    assert list(line.get_ydata()) == finder.history["loss"][10:-5]
    (marks,) = ax.collections
    assert marks.get_offsets().tolist() == [[lr, finder.history["loss"][inner][point]]]
    assert legend(ax) == ["steepest gradient"]
    only_axes = finder.plot(
        skip_start=0, skip_end=0, suggest_lr=False, log_lr=False, show_lr=0.5, ax=Figure().subplots()
    )
    assert len(only_axes.lines) == 2
    assert list(only_axes.lines[0].get_xdata()) == finder.history["lr"]
    assert list(only_axes.lines[1].get_xdata()) == [0.5, 0.5]
    assert only_axes.get_xscale() == "linear"
    assert not only_axes.collections
    assert only_axes.get_legend() is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"skip_start": -1}, ValueError, "skip_start cannot be negative"),
        ({"skip_end": -1}, ValueError, "skip_end cannot be negative"),
        ({"show_lr": "0.1"}, ValueError, "show_lr must be float"),
        ({"skip_start": 90}, RuntimeError, "Need at least 97 iterations"),
    ],
)
def test_plot_refuses_what_torch_lr_finders_does(finder, options, error, message):
    with pytest.raises(error, match=message):
        finder.plot(**options)


def test_plot_of_a_history_without_a_suggestion_warns(finder, axes):
    finder.history = {"lr": ramp(1e-5, 1.0, 40), "loss": [1.0] * 40}
    with pytest.warns(UserWarning, match="never falls"):
        ax, lr = finder.plot(ax=axes)
    assert (ax, lr) == (axes, finder.history["lr"][10])  # as there


@pytest.mark.parametrize(
    ("losses", "point"),
    [
        ([9, 8, 5, 1, 2, 8], 2),
        ([3, 1, 2, 3, 4, 5], 0),
        ([1, 2, 3, 4, 5, 4], 5),
        ([5, 4, 30, 20, 1, 1], 3),  # beyond the first fall: on the way down from an explosion
        ([4, 3, 1, math.nan, 8, 9], 1),
        ([4, 3, 1, math.inf, 2, 1], 1),  # not the step back from an infinite loss
        ([5, 1], 0),
    ],
)
def test_a_history_set_by_hand_has_the_steepest_point_of_torch_lr_finder(finder, axes, losses, point):
    finder.history = {"lr": range(len(losses)), "loss": losses}  # with a learning rate of 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that most of these do not support a suggestion
        assert finder.plot(0, 0, ax=axes) == (axes, point)
    assert len(axes.lines) == len(axes.collections) == 1


def test_a_history_without_any_finite_loss_has_no_steepest_point(finder, axes):
    finder.history = {"lr": [1.0, 2.0], "loss": [math.nan] * 2}
    with pytest.warns(UserWarning, match="no loss is finite"):
        assert finder.plot(0, 0, ax=axes) == (axes, None)


def test_the_finder_says_that_it_stopped_early(capsys, finder):
    assert finder.result.stopped == "diverged"
    finder.reset()
    finder.range_test(DataLoader(TensorDataset(torch.randn(4, 8), torch.zeros(4, 1)), 4), end_lr=1e-3, num_iter=3)
    out = capsys.readouterr().out
    assert out.count("Stopping early, the loss has diverged") == 1
    assert out.count("Learning rate search finished") == 2
