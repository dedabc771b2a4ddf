"""Curves that are flat for most of the range: a second test from a higher start, and hints that point the right way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fusedopt.lr_finder import LRFinderResult, find_lr, suggest_lr
from fusedopt.lr_finder.curve import ramp
from fusedopt.lr_finder.suggestion import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")
RANGE = {"start_lr": 1e-5, "end_lr": 1e3}
ENOUGH = 0.012  # once most steps are taken where the loss falls


class Counting:
    """Counts the tests, and how many learning rates each goes through."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, steps: Iterable[int], total: int) -> Iterable[int]:
        self.lengths.append(total)
        return steps


def make(groups: int = 1) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in range(groups)])
    return model, torch.optim.SGD([{"params": [p], "lr": 0.1 * 2**i} for i, p in enumerate(model)])


def falling_by(fall: float) -> Callable[[nn.Module, Any], Tensor]:
    """A loss that falls from 1 by so much, and is lowest where all parameters are 1."""
    return lambda model, batch: 1 + fall * torch.stack([(p - 1) ** 2 for p in model.parameters()]).mean()


def find(fall: float, groups: int = 1, loader: Any = (0,), **options: Any) -> tuple[LRFinderResult, list[int]]:
    model, optimizer = make(groups)
    counting = Counting()
    options = {**RANGE, **options}
    result = find_lr(model, optimizer, None, loader, closure=falling_by(fall), progress=counting, **options)
    assert not any(p.item() for p in model.parameters())
    assert [group["lr"] for group in optimizer.param_groups] == [0.1 * 2**i for i in range(groups)]
    assert not optimizer.state
    return result, counting.lengths


def test_a_flat_curve_is_tried_again_from_a_higher_start() -> None:
    result, lengths = find(ENOUGH)
    assert lengths == [100, 100]
    again, lengths = find(ENOUGH, start_lr=result.lrs[0])
    assert lengths == [100]
    assert again == result
    assert 1 / ENOUGH / 4 < result.suggestion < 1 / ENOUGH  # which is where it diverges
    assert result.lrs[0] == pytest.approx(830 / 1e4, rel=0.01)  # of where the first test ended
    assert result.lrs[-1] <= 1e3
    enough, lengths = find(2 * ENOUGH)
    assert lengths == [100]
    assert enough.lrs[0] == 1e-5


@pytest.mark.parametrize(("start", "ratio"), [(1e-5, 2), ([1e-5, 4e-5], 4)])
def test_groups_keep_their_ratios(start: Any, ratio: float) -> None:
    model, optimizer = make(groups=2)
    counting, seen = Counting(), []  # what a hook keeps would be put back

    def loss(model: nn.Module, batch: int) -> Tensor:
        seen.append([group["lr"] for group in optimizer.param_groups])
        return falling_by(ENOUGH)(model, batch)

    options = {**RANGE, "start_lr": start, "progress": counting}
    result = find_lr(model, optimizer, None, [0], closure=loss, **options)
    assert counting.lengths == [100, 100]
    assert {round(second / first, 9) for first, second in seen} == {ratio}
    assert result.group_lrs == pytest.approx([result.suggestion, ratio * result.suggestion])


def test_a_curve_that_stays_flat_is_the_first_one() -> None:
    result, lengths = find(0.002)
    assert lengths == [100, 100]
    assert result.lrs[0] == 1e-5
    assert result.suggestions == {}


def once() -> Iterator[int]:
    """Batches for one test only."""
    yield from range(100)


@pytest.mark.parametrize(
    "options",
    [
        {"start_lr": 0.1},  # most of the range is not too low
        {"step_mode": "linear", "diverge_th": None},  # so few steps are not the reason
        {"loader": once()},
        {"start_lr": 300.0, "num_iter": 20, "diverge_th": None},  # the loss only rises
    ],
    ids=["narrow", "linear", "iterator", "rising"],
)
def test_what_a_higher_start_does_not_help_is_tried_once(options: dict[str, Any]) -> None:
    result, lengths = find(0.002, **options)
    assert len(lengths) == 1
    assert result.suggestions == {}


def test_an_exception_in_the_second_test_leaves_no_trace() -> None:
    model, optimizer = make()
    calls = []

    def failing(model: nn.Module, batch: int) -> Tensor:
        calls.append(batch)
        if len(calls) > 150:
            raise KeyboardInterrupt
        return falling_by(ENOUGH)(model, batch)

    with pytest.raises(KeyboardInterrupt):
        find_lr(model, optimizer, None, [0], closure=failing, **RANGE)
    assert model[0].item() == 0
    assert optimizer.param_groups[0]["lr"] == 0.1


LRS = ramp(1e-7, 10.0, 100)
NOISE = 0.02 * np.random.default_rng(0).standard_normal(100)
FLAT = 2.3 + NOISE
EXPLODING = [*FLAT[:80], *np.geomspace(2.3, 1e4, 20)]
RAISE = "raise start_lr or num_iter, for more steps where it may fall, or "


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("losses", "hint"),
    [
        (FLAT, "raise end_lr, or use larger batches"),
        (EXPLODING, RAISE + "use larger batches"),
        ([*FLAT[:80], *[math.nan] * 20], RAISE + "use larger batches"),
        (np.linspace(1, 5, 100) + 10 * NOISE, "lower start_lr, since it rises from the start, or use larger batches"),
        (np.linspace(1, 5, 100), "lower start_lr, since it rises from the start, or start from a model"),
        ([*np.linspace(2.3, 2.29, 80), *np.geomspace(2.3, 1e4, 20)], RAISE + "start from a model"),
        ([*np.linspace(2.29, 2.3, 80), *np.geomspace(2.3, 1e4, 20)], RAISE + "start from a model"),
        (np.linspace(2.3, 2.29, 100), "raise end_lr, or start from a model"),
        (np.full(100, 2.3), "raise end_lr, or see that the optimizer holds the model's parameters"),
    ],
    ids=["flat", "exploding", "nan", "noisy-rise", "rise", "little", "creeping", "little-at-the-end", "constant"],
)
def test_the_hint_points_the_right_way(method: str, losses: Any, hint: str) -> None:
    with pytest.raises(ValueError, match="; " + hint):
        suggest_lr(LRS, losses, method)
