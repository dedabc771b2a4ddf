"""Learning rates and losses that are zero, infinite, NaN, or tensors: taken where they have a meaning, else refused."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from finder_task import make_task
from torch import nn

import fusedopt
from fusedopt.lr_finder import LRFinder, LRFinderResult, find_lr, suggest_lr
from fusedopt.lr_finder.curve import Curve, ramp

pytestmark = pytest.mark.usefixtures("one_thread")


def find(how="find_lr", criterion=None, lr=1e-3, **options):
    model, _, train, _ = make_task()
    optimizer = fusedopt.SGD(model.parameters(), lr=lr, momentum=0.5)
    criterion = criterion or nn.MSELoss()
    options = {"start_lr": 1e-4, "end_lr": 10.0, "num_iter": 60} | options
    if how == "find_lr":
        return find_lr(model, optimizer, criterion, train, **options)
    finder = LRFinder(model, optimizer, criterion)
    finder.range_test(train, **options)
    return finder.result


both = pytest.mark.parametrize("how", ["find_lr", "LRFinder"])
NUMBERS = {
    "tensor": lambda x: torch.tensor(x, dtype=torch.float64),
    "parameter": lambda x: nn.Parameter(torch.tensor([x], dtype=torch.float64)),
    "NumPy scalar": np.float64,
    "NumPy array": lambda x: np.array(x),
    "fraction": Fraction,
}


@both
@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
def test_a_number_may_be_of_any_kind(how, make):
    expected, result = find(how), None
    several = (lambda x: [make(x)]) if make is NUMBERS["parameter"] else make
    result = find(how, start_lr=several(1e-4), end_lr=make(10.0), num_iter=make(60), diverge_th=make(5))
    assert result == expected
    assert all(type(lr) is float for lr in result.lrs)
    assert result.suggestion == expected.suggestion


@both
def test_learning_rates_of_several_groups_may_be_in_tensors_and_arrays(how):
    results = []
    for several in ([1e-4, 2e-4], torch.tensor([1e-4, 2e-4], dtype=torch.float64), np.array([1e-4, 2e-4])):
        model, _, train, _ = make_task()
        groups = [{"params": [p], "lr": torch.tensor(0.1)} for p in model.parameters()]
        optimizer = torch.optim.SGD(groups, foreach=False)
        if how == "find_lr":
            results.append(find_lr(model, optimizer, nn.MSELoss(), train, start_lr=several, end_lr=1, num_iter=5))
        else:
            finder = LRFinder(model, optimizer, nn.MSELoss())
            finder.range_test(train, start_lr=several, end_lr=1, num_iter=5)
            results.append(finder.result)
    assert results[0] == results[1] == results[2]
    assert results[0].lrs == ramp(1e-4, 1.0, 5)


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end_lr": math.inf}, "end_lr must be finite and at least 0, not inf"),
        ({"end_lr": math.nan}, "end_lr must be finite and at least 0, not nan"),
        ({"end_lr": torch.tensor(math.inf)}, "end_lr must be finite"),
        ({"end_lr": None}, "end_lr must be a number, not None"),
        ({"end_lr": "1"}, "end_lr must be a number, not '1'"),
        ({"end_lr": torch.tensor([1.0, 2.0])}, "end_lr must be a number"),
        ({"end_lr": 1e300, "start_lr": 1e-300}, "too wide"),
        ({"start_lr": math.inf}, "start_lr must be finite and at least 0, not inf"),
        ({"start_lr": math.nan}, "start_lr must be finite and at least 0, not nan"),
        ({"start_lr": [math.nan]}, "start_lr must be finite"),
        ({"start_lr": [0.0]}, "positive learning rates, not 0 to 10; set start_lr above 0"),
        ({"start_lr": [1e-3, 1e-2]}, "2 learning rates for 1 parameter groups"),
        ({"start_lr": torch.tensor([1e-3, 1e-2])}, "2 learning rates for 1 parameter groups"),
        ({"start_lr": "1e-3"}, "start_lr must be a number"),
        ({"start_lr": None, "lr": 0.0}, "positive learning rates"),
        ({"start_lr": None, "lr": torch.tensor(math.inf)}, "the optimizer's learning rate must be finite"),
        ({"num_iter": 10.5}, "num_iter must be an integer, not 10.5"),
        ({"num_iter": math.inf}, "num_iter must be an integer"),
        ({"steps_per_lr": 1.5}, "steps_per_lr must be an integer"),
        ({"accumulation_steps": math.nan}, "accumulation_steps must be an integer"),
        ({"smooth_f": math.nan}, "smooth_f is outside"),
        ({"smooth_f": "0"}, "smooth_f must be a number"),
        ({"diverge_th": math.nan}, "diverge_th must be at least 1"),
    ],
)
def test_what_is_no_learning_rate_is_refused_by_name_before_anything_runs(how, options, message):
    calls = []

    def criterion(outputs, labels):
        calls.append(1)
        return nn.functional.mse_loss(outputs, labels)

    with pytest.raises(ValueError, match=message):
        find(how, criterion, **options)
    assert not calls


def test_a_first_learning_rate_of_zero_is_refused_where_it_cannot_grow():
    with pytest.raises(ValueError, match=r"positive learning rates, not 0 to 10; .* or to None, the optimizer's own"):
        find(start_lr=0)
    with pytest.raises(ValueError, match="positive learning rates, not 0 to 10"):
        find(start_lr=torch.tensor(0.0))


def test_a_linear_ramp_from_zero_has_suggestions_and_a_picture():
    from matplotlib.figure import Figure

    result = find(start_lr=0, end_lr=2.0, num_iter=100, step_mode="linear", smooth_f=0.2)
    assert result.lrs[0] == 0
    assert result.suggestion == suggest_lr(result.lrs[1:], result.smoothed[1:], "minimum", noise=result.noise)
    axes = result.plot(Figure().subplots())
    assert any("suggested" in text.get_text() for text in axes.get_legend().get_texts())


def test_groups_keep_their_ratio_on_a_ramp_from_zero():
    model, _, train, _ = make_task()
    groups = [{"params": [p], "lr": lr} for p, lr in zip(model.parameters(), (0.1, 0.02), strict=True)]
    optimizer, seen = fusedopt.SGD(groups), []
    model.register_forward_pre_hook(lambda *_: seen.append([g["lr"] for g in optimizer.param_groups]))
    options = {"start_lr": 0, "end_lr": 1.0, "num_iter": 5, "step_mode": "linear"}
    result = find_lr(model, optimizer, nn.MSELoss(), train, **options)
    assert seen == [pytest.approx([lr, 0.2 * lr]) for lr in (0, 0.25, 0.5, 0.75, 1)]
    assert result.group_scales == pytest.approx([1.0, 0.2])


@both
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_never_finite_is_not_blamed_on_the_iterations(how, value):
    result = find(how, lambda out, y: nn.functional.mse_loss(out, y) * value)
    assert (result.stopped, len(result.losses)) == ("loss not finite", 1)
    assert len(result.refusals) == 4
    for reason in result.refusals.values():
        assert reason.startswith("no loss is finite, from the first at 1.00e-04 on: look at the data, the model's")
        assert "num_iter" not in reason


@both
@pytest.mark.parametrize(("value", "what"), [(math.nan, "was not finite any more"), (1e6, "diverged")])
def test_a_curve_that_ended_early_says_where_and_why(how, value, what):
    calls = iter(range(100))
    result = find(how, lambda out, y: nn.functional.mse_loss(out, y) * (value if next(calls) == 7 else 1.0))
    assert len(result.losses) == 8
    points = 7 if math.isnan(value) else 8
    with pytest.raises(ValueError, match=f"the loss {what} at {result.lrs[7]:.2e}, after {points} points, .*start_lr"):
        result.suggest("minimum")


def test_a_short_test_is_still_told_to_be_longer():
    with pytest.raises(ValueError, match=r"8 finite losses are too few.*num_iter"):
        find(num_iter=8, end_lr=1e-2).suggest("minimum")


def test_a_loss_that_reaches_zero_has_not_diverged():
    curve = Curve(smooth_f=0)
    assert all(curve.add(lr, loss) for lr, loss in enumerate([2.0, 1.0, 0.0, 1e-6, 0.5, 7.9]))
    assert not curve.add(7, 8.1)  # four times what it has fallen
    assert curve.stopped == "diverged"


def test_a_loss_of_zero_from_the_start_is_said_never_to_fall():
    result = find(criterion=lambda out, y: 0 * nn.functional.mse_loss(out, y))
    with pytest.raises(ValueError, match="never falls"):
        result.suggest("minimum")


def test_a_result_of_nothing():
    with pytest.raises(ValueError, match="too few"):
        LRFinderResult([], [], []).suggest("minimum")
