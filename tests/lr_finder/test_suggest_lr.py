"""Suggestions from curves whose answer is known, and refusals of curves that have none."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from fusedopt.lr_finder import suggest_lr
from fusedopt.lr_finder.curve import ramp
from fusedopt.lr_finder.suggestion import METHODS, estimate_noise

LRS = ramp(1e-8, 10.0, 91)  # ten per decade


def sigmoid(x, at, width=0.3):
    return 1 / (1 + math.exp(-(math.log10(x) - at) / width))


def typical(lr):
    """Flat at 2.3, falls by 1.8 around 1e-2, and diverges from about 0.5 on."""
    return 2.3 - 1.8 * sigmoid(lr, -2) + 8 * sigmoid(lr, 0.3, 0.12)


CURVE = [typical(lr) for lr in LRS]


def suggest(losses, method, **kwargs):
    return suggest_lr(LRS, losses, method, **kwargs)


def test_steepest_is_the_middle_of_the_fall():
    assert suggest(CURVE, "steepest") == pytest.approx(1e-2)


def test_steepest_is_the_lowest_unit_spaced_gradient_on_an_exponential_ramp():
    rng = np.random.default_rng(0)
    noisy = (np.array(CURVE) + 0.02 * rng.standard_normal(len(CURVE))).tolist()
    inner = slice(10, len(LRS) - 5)
    assert suggest(noisy, "steepest") == LRS[inner][np.gradient(noisy[inner]).argmin()]


def test_steepest_is_per_log_lr_on_a_linear_ramp():
    """A loss that falls evenly in log(lr) from 0.01 to 0.1 is steepest there; per unit of lr it would be at 0.01."""
    lrs = ramp(0.001, 1.0, 1000, "linear")
    losses = [3 - 1.0 * sigmoid(lr, -0.7, 0.1) - 0.15 * sigmoid(lr, -2, 0.1) for lr in lrs]
    assert np.array(lrs)[np.gradient(losses).argmin()] < 0.15
    assert suggest_lr(lrs, losses, "steepest", 0, 0) == pytest.approx(10**-0.7, rel=0.02)


def test_noise_at_the_crowded_end_of_a_linear_ramp_is_not_a_slope():
    rng = np.random.default_rng(0)
    lrs = ramp(0.001, 1.0, 300, "linear")
    losses = [3 - 2 * sigmoid(lr, -1, 0.15) + 0.01 * rng.standard_normal() for lr in lrs]
    assert suggest_lr(lrs, losses, "steepest", 0, 0) == pytest.approx(0.1, rel=0.35)


def test_steepest_does_not_look_beyond_the_minimum():
    exploded = [loss if lr < 0.5 else 40 / (1 + lr) for lr, loss in zip(LRS, CURVE, strict=True)]
    assert suggest(exploded, "steepest") == pytest.approx(1e-2)


def test_steepest_does_not_look_beyond_the_minimum_of_a_linear_ramp():
    lrs = ramp(0.001, 1.0, 300, "linear")
    losses = [3 - 2 * sigmoid(lr, -1, 0.15) if lr < 0.4 else 40 - 30 * lr for lr in lrs]
    assert suggest_lr(lrs, losses, "steepest", 0, 0) == pytest.approx(0.1, rel=0.05)


def test_minimum_is_a_tenth_of_the_lowest():
    lowest = LRS[int(np.argmin(CURVE))]
    assert suggest(CURVE, "minimum") == lowest / 10


def test_valley_is_half_way_along_the_longest_fall():
    """As fastai counts: the length of the subsequence, taken back from its end, plus a third and half a third."""
    losses = [5.0, 5.1, 5.2, 5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 6.0, 7.0]
    lrs = ramp(1e-3, 1.0, len(losses))
    # The longest begins at index 2 (or 0) and ends at 10 with 9 points, so it is counted from 1: 1 + 3 + 1.
    assert suggest_lr(lrs, losses, "valley", 0, 0) == lrs[5]


def fastai_valley(lrs, losses):
    """The double loop of fastai 2.8's `valley`."""
    n = len(losses)
    max_start, max_end = 0, 0
    lds = [1] * n
    for i in range(1, n):
        for j in range(i):
            if losses[i] < losses[j] and lds[i] < lds[j] + 1:
                lds[i] = lds[j] + 1
            if lds[max_end] < lds[i]:
                max_end = i
                max_start = max_end - lds[max_end]
    sections = (max_end - max_start) / 3
    return lrs[max_start + int(sections) + int(sections / 2)]


def fastai_slide(lrs, losses, lr_diff=15, thresh=0.005):
    """The loop of fastai 2.8's `slide`."""
    loss_grad = np.gradient(losses)
    r_idx, l_idx = -1, -1 - lr_diff
    local_min_lr = lrs[l_idx]
    while l_idx >= -len(losses) and abs(loss_grad[r_idx] - loss_grad[l_idx]) > thresh:
        local_min_lr = lrs[l_idx]
        r_idx -= 1
        l_idx -= 1
    return local_min_lr


@pytest.mark.parametrize("seed", range(20))
def test_valley_and_slide_agree_with_fastai(seed):
    rng = np.random.default_rng(seed)
    losses = (np.array(CURVE) + 0.005 * rng.standard_normal(len(CURVE))).tolist()
    assert suggest(losses, "valley", skip_start=0, skip_end=0) == fastai_valley(LRS, losses)
    smooth = [typical(lr * 10 ** rng.uniform(-0.01, 0.01)) for lr in LRS]
    assert suggest(smooth, "slide", skip_start=0, skip_end=0) == fastai_slide(LRS, smooth)


def test_the_four_differ_on_this_curve():
    assert len({suggest(CURVE, method) for method in METHODS}) == 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tail", [[math.nan] * 4, [math.inf] * 4, [math.inf, math.nan, math.nan, -math.inf]])
def test_a_tail_that_is_not_finite_changes_nothing(method, tail):
    lrs = LRS + [LRS[-1] * 1.26**i for i in range(1, 5)]
    assert suggest_lr(lrs, CURVE + tail, method) == suggest(CURVE, method)


@pytest.mark.parametrize("method", ["steepest", "minimum"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_value_that_is_not_finite_changes_little(method, value):
    losses = [*CURVE]
    losses[57] = value
    assert suggest(losses, method) == pytest.approx(suggest(CURVE, method), rel=0.3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shift", [-2.3, -10.0])
def test_negative_losses(method, shift):
    assert suggest([loss + shift for loss in CURVE], method) == suggest(CURVE, method)


NOISE = np.random.default_rng(0).standard_normal(len(LRS))
HOPELESS = {
    "constant": [2.3] * len(LRS),
    "flat with noise": (2.3 + 1e-3 * NOISE).tolist(),
    "flat with much noise": (2.3 + 0.3 * NOISE).tolist(),
    "flat around zero": (0.1 * NOISE).tolist(),
    "rising": np.linspace(1, 5, len(LRS)).tolist(),
    "rising with noise": (np.linspace(1, 5, len(LRS)) + 0.2 * NOISE).tolist(),
    "exploding": np.geomspace(1, 1e30, len(LRS)).tolist(),
    "negative and rising": np.linspace(-5, -1, len(LRS)).tolist(),
    "finite for too short a time": CURVE[:12] + [math.nan] * (len(LRS) - 12),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("losses", HOPELESS.values(), ids=HOPELESS)
def test_refusals_say_what_to_change(method, losses):
    with pytest.raises(ValueError, match=r"start_lr|end_lr|num_iter|larger batches"):
        suggest(losses, method)


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([math.nan] * len(LRS), "no loss is finite, from the first at 1.00e-08 on: look at the data"),
        ([2.3] * len(LRS), "never falls"),
        (np.linspace(1, 5, len(LRS)), "never falls"),
        (np.linspace(2.3, 2.29, len(LRS)), r"falls by 0\.3\d % only"),
        (np.linspace(2.3, 2.2, len(LRS)) + 0.1 * NOISE, "by chance"),
    ],
)
def test_reasons(losses, reason):
    with pytest.raises(ValueError, match=reason):
        suggest(losses, "steepest")


def test_a_fall_is_judged_by_the_noise_that_is_given():
    suggest(CURVE, "steepest", noise=0.2)
    with pytest.raises(ValueError, match="by chance"):
        suggest(CURVE, "steepest", noise=0.5)


def test_estimate_of_the_noise():
    rng = np.random.default_rng(0)
    curve = np.array([typical(lr) for lr in ramp(1e-5, 1.0, 2000)])
    assert estimate_noise(curve + 0.05 * rng.standard_normal(2000)) == pytest.approx(0.05, rel=0.1)
    assert estimate_noise([1.0, math.nan]) == 0


def test_slide_needs_its_window():
    with pytest.raises(ValueError, match="window is 15 wide"):
        suggest(CURVE, "slide", skip_start=50, skip_end=27)


def test_slide_refuses_a_slope_that_never_settles():
    x = np.arange(len(LRS))
    losses = (5 - 0.05 * x + 0.5 * np.sin(2 * np.pi * x / 30)).tolist()
    with pytest.raises(ValueError, match="never settles"):
        suggest(losses, "slide", noise=0.0)


def test_slide_refuses_what_lies_beyond_the_minimum():
    exploded = [loss if lr < 0.05 else 4.0 for lr, loss in zip(LRS, CURVE, strict=True)]
    with pytest.raises(ValueError, match="beyond the lowest loss"):
        suggest(exploded, "slide")


@pytest.mark.parametrize(
    ("lrs", "losses", "kwargs", "message"),
    [
        (LRS, CURVE[:-1], {}, "one loss per learning rate"),
        (LRS[::-1], CURVE, {}, "increasing"),
        ([-1.0, *LRS[1:]], CURVE, {}, "at least 0"),
        ([*LRS[:-1], math.inf], CURVE, {}, "finite"),
        (LRS, CURVE, {"method": "guess"}, "choose one of steepest, valley, slide, minimum"),
        (LRS, CURVE, {"skip_start": -1}, "at least 0"),
        (LRS, CURVE, {"skip_end": -1}, "at least 0"),
        (LRS[:16], CURVE[:16], {}, "at least 17"),
        ([], [], {"skip_start": 0, "skip_end": 0}, "at least 2"),
    ],
)
def test_wrong_arguments(lrs, losses, kwargs, message):
    with pytest.raises(ValueError, match=message):
        suggest_lr(lrs, losses, **kwargs)


@given(
    st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf]), min_size=2, max_size=40),
    st.sampled_from(list(METHODS)),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_any_curve_gives_a_learning_rate_within_reach_or_a_reason(losses, method, skip_start, skip_end):
    lrs = ramp(1e-4, 1.0, len(losses))
    try:
        lr = suggest_lr(lrs, losses, method, skip_start, skip_end)
    except ValueError:
        return
    assert lrs[0] / 10 <= lr <= lrs[-1]
    if method != "valley":  # which may end where the curve was lowest so far
        finite = [(loss, at) for loss, at in zip(losses, lrs, strict=True) if math.isfinite(loss)]
        inner = finite[skip_start : len(finite) - skip_end]
        assert lr <= min(inner)[1]
