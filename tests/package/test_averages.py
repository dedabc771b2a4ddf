"""Moving averages against the numbers and the code of the course they come from, and against Adam's states."""

import numpy as np
import pytest
import torch
from torch import nn

import fusedopt
from fusedopt import averages

# Godoy's example: 30 temperatures, a period of 19, and his functions' results.
TEMPERATURES = [5, 11, 15, 6, 5, 3, 3, 0, 0, 3, 4, 2, 1, -1, -2, 2, 2, -2, -1, -1, 3, 4, -1, 2, 6, 4, 9, 11, 9, -2]
EWMA = [0.5, 1.55, 2.895, 3.2055, 3.38495]
CORRECTED = [5.0, 8.1578947368, 10.6826568266, 9.3210235534, 8.2658543137]


def both(values):
    return [np.array(values), torch.tensor(values)]


@pytest.mark.parametrize("values", [*both([2, 4, 6, 8, 10, 12, 14, 16]), [2, 4, 6, 8, 10, 12, 14, 16]])
def test_moving_average(values):
    average = averages.moving_average(values, 3)
    assert average.tolist() == [4, 6, 8, 10, 12, 14]
    assert type(average) is (torch.Tensor if isinstance(values, torch.Tensor) else np.ndarray)
    assert averages.moving_average(values, 8).tolist() == [9]
    assert averages.moving_average(values, 1).tolist() == list(values)


@pytest.mark.parametrize("values", both(TEMPERATURES))
@pytest.mark.parametrize("form", [{"alpha": 0.1}, {"beta": 0.9}, {"period": 19}], ids=str)
def test_ewma_of_the_temperatures(values, form):
    plain, corrected = averages.ewma(values, **form), averages.ewma(values, **form, corrected=True)
    assert plain[:5].tolist() == pytest.approx(EWMA, rel=1e-12)
    assert float(plain[-1]) == pytest.approx(3.4655800034, abs=1e-10)
    assert corrected[:5].tolist() == pytest.approx(CORRECTED, rel=1e-10)
    assert float(corrected[-1]) == pytest.approx(3.6189933221, abs=1e-10)
    assert averages.correct_bias(plain, **form).tolist() == corrected.tolist()


def test_ages():
    assert averages.moving_average_age(3) == 2
    assert averages.moving_average_age(5) == 3
    assert averages.ewma_age(93, alpha=1 / 3) == pytest.approx(3.0, abs=1e-12)
    assert averages.ewma_age(alpha=1 / 3) == pytest.approx(3.0)
    assert averages.ewma_age(alpha=1) == averages.ewma_age(1, alpha=1) == 1
    for steps in (0, 1, 2, 7):  # the sum it stands for
        expected = 0.2 * sum(0.8**lag * (lag + 1) for lag in range(steps))
        assert averages.ewma_age(steps, beta=0.8) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("alpha", "beta", "period"), [(1 / 3, 2 / 3, 5), (0.1, 0.9, 19), (0.001, 0.999, 1999)])
def test_conversions(alpha, beta, period):
    assert averages.alpha_from_period(period) == pytest.approx(alpha, rel=1e-12)
    assert averages.period_from_alpha(alpha) == pytest.approx(period, rel=1e-12)
    assert averages.alpha_from_beta(beta) == pytest.approx(alpha, rel=1e-12)
    assert averages.beta_from_alpha(alpha) == pytest.approx(beta, rel=1e-12)
    assert averages.beta_from_period(period) == pytest.approx(beta, rel=1e-12)
    assert averages.period_from_beta(beta) == pytest.approx(period, rel=1e-12)
    assert averages.moving_average_age(period) == pytest.approx(averages.ewma_age(alpha=alpha), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_against_float64_with_trailing_dimensions(dtype):
    values = torch.randn(50, 2, 3, dtype=torch.float64).to(dtype)
    exact, reference = values.double().numpy(), []
    for t in range(50):
        weights = 0.03 * 0.97 ** np.arange(t, -1, -1)
        reference.append((weights[:, None, None] * exact[: t + 1]).sum(0) / weights.sum())
    result = averages.ewma(values, alpha=0.03, corrected=True)
    assert result.dtype == dtype
    # Half precision is rounded once, from float32: at most to the neighbour of the right value.
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-14 if dtype == torch.float64 else 1e-6}
    torch.testing.assert_close(result, torch.tensor(np.array(reference)).to(dtype), **tolerance)
    sliding = np.array([exact[i : i + 7].mean(0) for i in range(44)])
    torch.testing.assert_close(averages.moving_average(values, 7), torch.tensor(sliding).to(dtype), **tolerance)


def test_numpy_keeps_its_dtype():
    values = np.arange(5, dtype=np.float32)
    assert averages.ewma(values, alpha=0.5).dtype == np.float32
    assert averages.ewma(values.astype(np.int32), alpha=0.5).dtype == np.float64
    assert averages.ewma(values[::-1], alpha=1).tolist() == [4, 3, 2, 1, 0]  # negative strides


def test_bias_correction_of_a_slow_average_in_float32():
    # 1 - 0.9999^t in float32 would be wrong by 1e-4 or so.
    averaged = averages.ewma(torch.ones(3), beta=0.9999, corrected=True)
    torch.testing.assert_close(averaged, torch.ones(3), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: averages.ewma([1.0]), "exactly one"),
        (lambda: averages.ewma([1.0], alpha=0.1, beta=0.9), "exactly one"),
        (lambda: averages.ewma([1.0], alpha=0), "alpha must be above 0"),
        (lambda: averages.ewma([1.0], alpha=float("nan")), "alpha must be above 0"),
        (lambda: averages.ewma([1.0], beta=1), "beta must be at least 0"),
        (lambda: averages.ewma([1.0], period=0), "period must be at least 1"),
        (lambda: averages.ewma([], alpha=0.1), "at least one value"),
        (lambda: averages.ewma(torch.tensor(1.0), alpha=0.1), "along the first axis"),
        (lambda: averages.moving_average([1.0, 2.0], 3), "integer of 1 to 2"),
        (lambda: averages.moving_average([1.0, 2.0], 1.5), "integer of 1 to 2"),
        (lambda: averages.ewma_age(-1, alpha=0.1), "at least 0"),
        (lambda: averages.moving_average_age(0), "at least 1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("cls", [fusedopt.Adam, fusedopt.AdamW, fusedopt.LAMB, torch.optim.Adam])
def test_the_states_of_adam_are_averages_of_the_captured_gradients(cls):
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    unclipped = {"max_grad_norm": None} if cls is fusedopt.LAMB else {}
    optimizer = cls(model.parameters(), lr=0.05, betas=(0.8, 0.95), **unclipped)
    with fusedopt.capture(model) as history:
        for i in range(12):
            optimizer.zero_grad()
            model(torch.sin(torch.arange(20.0).double().view(4, 5) + i)).square().sum().backward()
            optimizer.step()
    for name, parameter in model.named_parameters():
        state, gradients = optimizer.state[parameter], history.gradients[name]
        assert gradients.std(dim=0).min() > 0  # they differ from step to step
        first = averages.ewma(gradients, beta=0.8)[-1].view_as(parameter)
        second = averages.ewma(gradients.square(), beta=0.95)[-1].view_as(parameter)
        torch.testing.assert_close(state["exp_avg"], first, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(state["exp_avg_sq"], second, rtol=1e-10, atol=1e-14)
