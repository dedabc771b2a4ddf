"""Warm-up before any other schedule, and what the schedules refuse."""

import math

import pytest
from schedule_runs import lrs, run, sgd
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from fusedopt.schedulers import (
    ExponentialDecayLR,
    FlatCosineLR,
    HalvingLR,
    InverseDecayLR,
    InverseSqrtLR,
    RampLR,
    WarmupLR,
    WarmupStableDecayLR,
    make_lr_fn,
)


def test_warmup_then_cosine_is_torchs_sequence():
    expected = [0.01, 0.0325, 0.055, 0.0775, 0.1, 0.0933013, 0.075, 0.05, 0.025, 0.0066987, 0, 0.0066987]
    optimizer = sgd(0.1)
    sequence = SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=4), CosineAnnealingLR(optimizer, 6)], [4])
    torchs = run(sequence, 12)
    assert torchs == pytest.approx(expected, abs=1e-7)
    optimizer = sgd(0.1)
    assert run(WarmupLR(optimizer, 4, after=CosineAnnealingLR(optimizer, 6)), 12) == pytest.approx(torchs, abs=1e-15)


def test_warmup_then_inverse_sqrt_is_that_of_attention_is_all_you_need():
    optimizer = sgd(0.1)
    schedule = WarmupLR(optimizer, 10, start_factor=1e-9, after=InverseSqrtLR(optimizer, 10))
    expected = [0.1 * min(t / 10, math.sqrt(10 / max(t, 1))) for t in range(50)]
    assert run(schedule, 50) == pytest.approx(expected, abs=1e-9)


AFTERS = {
    "cosine": lambda o: CosineAnnealingLR(o, 6),
    "inverse": lambda o: InverseDecayLR(o, 0.1),
    "one-cycle": lambda o: OneCycleLR(o, max_lr=0.2, total_steps=20),
    "chain": lambda o: ChainedScheduler([ExponentialLR(o, 0.9), HalvingLR(o, 2)]),
    "sequence": lambda o: SequentialLR(o, [ExponentialLR(o, 0.9), HalvingLR(o, 2)], [3]),
    "warmup": lambda o: WarmupLR(o, 2, after=HalvingLR(o, 2)),
}


@pytest.mark.parametrize("name", AFTERS)
def test_warmup_hands_over_and_resumes(name):
    def make():
        optimizer = sgd(0.1, 0.03)
        return WarmupLR(optimizer, 3, after=AFTERS[name](optimizer))

    for group in (0, 1):
        alone = run(AFTERS[name](sgd(0.1, 0.03)), 9, group)
        expected = run(make(), 12, group)
        assert expected[:3] == pytest.approx([alone[0] * f for f in (0.1, 0.4, 0.7)], rel=1e-14)
        assert expected[3:] == alone
        schedule = make()
        for lr in expected:
            assert schedule.get_last_lr()[group] == lr
            schedule.optimizer.step()
            schedule.step()
        for stop in (0, 2, 3, 4, 8):
            first, second = make(), make()
            run(first, stop)
            second.optimizer.load_state_dict(first.optimizer.state_dict())
            second.load_state_dict(first.state_dict())
            assert run(second, 12 - stop, group) == expected[stop:], stop


def test_warmup_keeps_the_momentum_where_the_cycle_starts():
    optimizer = sgd(0.1)
    schedule = WarmupLR(optimizer, 3, after=OneCycleLR(optimizer, max_lr=0.2, total_steps=20))
    momenta = []
    for _ in range(6):
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        schedule.step()
    assert momenta[:4] == [0.95] * 4
    assert 0.85 < momenta[5] < momenta[4] < 0.95


def test_warmup_in_a_sequence_with_a_schedule_of_its_own():
    optimizer = sgd(0.1)
    warmup = WarmupLR(optimizer, 2, start_factor=0.5, after=LinearLR(optimizer, 0.2, total_iters=2))
    sequence = SequentialLR(optimizer, [warmup, ConstantLR(optimizer, 0.1, 99)], [5])
    assert run(sequence, 6) == pytest.approx([0.01, 0.015, 0.02, 0.06, 0.1, 0.01], rel=1e-14)


def test_warmup_passes_the_metric_on():
    optimizer = sgd(0.1)
    schedule = WarmupLR(optimizer, 2, after=ReduceLROnPlateau(optimizer, patience=1))
    seen = []
    for metric in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        seen.append(lrs(optimizer)[0])
        optimizer.step()
        schedule.step(metric)
    # The warm-up's metrics do not count: the plateau begins with the third.
    assert seen == pytest.approx([0.01, 0.055, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_warmup_of_no_steps_is_the_schedule():
    optimizer = sgd(0.1)
    assert run(WarmupLR(optimizer, 0, after=HalvingLR(optimizer)), 5) == run(HalvingLR(sgd(0.1)), 5)


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: ExponentialDecayLR(o, -1), "k must be at least 0 and finite, not -1"),
        (lambda o: ExponentialDecayLR(o, math.nan), "k must be at least 0 and finite, not nan"),
        (lambda o: ExponentialDecayLR(o, 0.1, 0), "every must be at least 1"),
        (lambda o: HalvingLR(o, 0), "every must be at least 1"),
        (lambda o: InverseDecayLR(o, -0.1), "k must be at least 0"),
        (lambda o: InverseSqrtLR(o, 0), "timescale must be above 0"),
        (lambda o: WarmupLR(o, -1), "warmup_steps must be at least 0"),
        (lambda o: WarmupLR(o, 3, "cosine"), "mode must be one of 'linear', 'exponential', 'constant', not 'cosine'"),
        (lambda o: WarmupLR(o, 3, start_factor=0), "start_factor must be above 0 and at most 1, not 0"),
        (lambda o: WarmupLR(o, 3, after=HalvingLR(sgd(0.1))), "of another optimizer"),
        (lambda o: WarmupLR(o, 3, after=HalvingLR(o), last_epoch=2), "resume with load_state_dict"),
        (lambda o: WarmupStableDecayLR(o, 1, 1, -1), "decay_steps must be at least 0"),
        (lambda o: WarmupStableDecayLR(o, 1, 1, 1, "sqrt"), "shape must be one of 'linear', 'cosine', '1-sqrt'"),
        (lambda o: WarmupStableDecayLR(o, 1, 1, 1, final_factor=2), "final_factor must lie between 0 and 1"),
        (lambda o: FlatCosineLR(o, 0), "total_steps must be at least 1"),
        (lambda o: FlatCosineLR(o, 9, flat=1.5), "flat must lie between 0 and 1"),
        (lambda o: RampLR(o, 0, 9), "end_lr must be above 0"),
        (lambda o: RampLR(o, [0.1, 0.2], 9), r"end_lr has 2 values for 1 parameter group\(s\)"),
        (lambda o: RampLR(sgd(0.0), 1, 9), "where the ramp starts, must be above 0"),
        (lambda o: RampLR(o, 1, 0), "num_iter must be at least 1"),
        (lambda o: make_lr_fn(0.01, 0.1, 10, "cosine"), "step_mode must be one of 'exp', 'linear', not 'cosine'"),
    ],
)
def test_bad_arguments_are_refused_and_the_optimizer_is_left(make, message):
    optimizer = sgd(0.1)
    with pytest.raises(ValueError, match=message):
        make(optimizer)
    assert lrs(optimizer) == [0.1]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: HalvingLR(sgd(0.1, 0.2)).state_dict(), r"for 2 parameter group\(s\), the optimizer has 1"),
        (lambda: ExponentialLR(sgd(0.1), 0.5).state_dict(), "not a state of HalvingLR: every, lrs missing"),
        (lambda: InverseDecayLR(sgd(0.1), 0.1).state_dict(), "not a state of HalvingLR: every missing"),
    ],
)
def test_another_state_is_refused_and_nothing_changes(state, message):
    schedule = HalvingLR(sgd(0.1))
    before = schedule.state_dict()
    with pytest.raises(ValueError, match=message):
        schedule.load_state_dict(state())
    assert schedule.state_dict() == before


def test_a_state_with_a_schedule_after_is_for_a_warmup_with_one():
    optimizer = sgd(0.1)
    state = WarmupLR(optimizer, 3, after=HalvingLR(optimizer)).state_dict()
    with pytest.raises(ValueError, match="with a schedule `after` the warm-up"):
        WarmupLR(sgd(0.1), 3).load_state_dict(state)
    with pytest.raises(ValueError, match="after step 3 the schedule is HalvingLR; use simulate"):
        WarmupLR(optimizer, 3, after=HalvingLR(optimizer)).lrs_at(4)
