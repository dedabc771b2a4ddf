"""A parameter group that is added after a schedule was made follows it, as with torch's own."""

import pytest
import torch
from schedule_runs import lrs, parameter, run, sgd
from schedules import SCHEDULES, by_name
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader, TensorDataset

from fusedopt.schedulers import (
    BatchSizeScheduler,
    ExponentialDecayLR,
    FlatCosineLR,
    HalvingLR,
    InverseDecayLR,
    RampLR,
    WarmupLR,
    on_device,
    simulate,
)


def add(optimizer, lr):
    optimizer.add_param_group({"params": [parameter()], "lr": lr})


def followed(schedule, before, lr, steps):
    """The learning rates of both groups from the step on at which the second is added."""
    run(schedule, before)
    add(schedule.optimizer, lr)
    rows = []
    for _ in range(steps):
        rows.append(lrs(schedule.optimizer))
        schedule.optimizer.step()
        schedule.step()
    return rows


@by_name
@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("before", [0, 1, 4, 11])
def test_it_goes_on_from_its_own_by_the_factors_of_the_formula(name, before, as_tensor):
    make, formula = SCHEDULES[name]
    optimizer = sgd(0.1)
    schedule = make(optimizer)
    given = 0.05
    rows = followed(schedule, before, torch.tensor(given, dtype=torch.float64) if as_tensor else given, 14)
    steps = range(before, before + 14)
    assert [row[0] for row in rows] == [formula(0.1, t) for t in steps]  # to the last bit: nothing else has changed
    expected = [given * formula(given, t) / formula(given, before) for t in steps]
    assert [row[1] for row in rows] == pytest.approx(expected, rel=1e-12)
    assert schedule.get_last_lr() == lrs(optimizer)
    assert schedule.lrs_at(3) == pytest.approx([formula(0.1, 3), formula(given, 3)])


TWINS = {
    "step": (lambda o: HalvingLR(o, 3), lambda o: StepLR(o, 3, 0.5)),
    "exponential": (
        lambda o: ExponentialDecayLR(o, -torch.tensor(0.9).double().log().item()),
        lambda o: ExponentialLR(o, torch.tensor(0.9).double().item()),
    ),
    "cosine": (lambda o: FlatCosineLR(o, 20, flat=0), lambda o: CosineAnnealingLR(o, 20)),
    "linear": (lambda o: WarmupLR(o, 8), lambda o: LinearLR(o, 0.1, total_iters=8)),
}


@pytest.mark.parametrize("before", [1, 5])
@pytest.mark.parametrize(("ours", "torchs"), TWINS.values(), ids=TWINS)
def test_as_with_torchs_own(ours, torchs, before):
    theirs = followed(torchs(sgd(0.1)), before, 0.3, 12)
    assert theirs[-1][1] != 0.3
    for mine, other in zip(followed(ours(sgd(0.1)), before, 0.3, 12), theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-12)


def test_several_at_different_times():
    schedule = InverseDecayLR(sgd(0.1), 0.5)
    run(schedule, 2)
    add(schedule.optimizer, 1.0)
    add(schedule.optimizer, 2.0)
    run(schedule, 2)
    add(schedule.optimizer, 4.0)
    run(schedule, 2)
    expected = [0.1 / 4, 1.0 * 2 / 4, 2.0 * 2 / 4, 4.0 * 3 / 4]
    assert lrs(schedule.optimizer) == pytest.approx(expected, rel=1e-14)


def test_looking_ahead_changes_nothing():
    schedule = InverseDecayLR(sgd(0.1), 0.5)
    run(schedule, 2)
    add(schedule.optimizer, 1.0)
    group = schedule.optimizer.param_groups[1]
    assert schedule.lrs_at(2) == [0.05, 0.5]
    assert simulate(schedule, 3).lr[:, 1].tolist() == pytest.approx([1.0, 0.8, 2 / 3])
    assert "initial_lr" not in group
    assert len(schedule.base_lrs) == 1


def test_a_schedule_that_has_reached_zero_gives_zero():
    schedule = FlatCosineLR(sgd(0.1), 3)
    assert [row[1] for row in followed(schedule, 5, 0.3, 3)] == [0.3, 0, 0]


@pytest.mark.parametrize("position", [0, 1])
def test_in_a_chain(position):
    makers = [lambda o: MultiStepLR(o, [3, 7], 0.5), lambda o: InverseDecayLR(o, 0.2)]
    makers.insert(position, lambda o: HalvingLR(o, 4))
    optimizer = sgd(0.1)
    chain = ChainedScheduler([maker(optimizer) for maker in makers])

    def factor(t):
        return 0.5 ** ((t >= 3) + (t >= 7) + t // 4) / (1 + 0.2 * t)

    rows = followed(chain, 2, 3.0, 10)
    assert [row[1] for row in rows] == pytest.approx([3.0 * factor(t) / factor(2) for t in range(2, 12)])
    ours = [s for s in chain._schedulers if not isinstance(s, MultiStepLR)]
    assert ours[0].base_lrs == ours[1].base_lrs  # what the first of them has seen


def test_in_a_sequence_the_second_begins_with_what_the_group_holds():
    optimizer = sgd(0.1)
    sequence = SequentialLR(optimizer, [ExponentialLR(optimizer, 0.5), WarmupLR(optimizer, 2)], [3])
    rows = followed(sequence, 1, 0.8, 6)
    assert [row[1] for row in rows] == pytest.approx([0.8, 0.4, 0.04, 0.22, 0.4, 0.4])
    assert [row[0] for row in rows] == pytest.approx([0.05, 0.025, 0.01, 0.055, 0.1, 0.1])
    assert sequence._schedulers[1].lrs_at(2) == pytest.approx([0.1, 0.4])


@pytest.mark.parametrize("before", [1, 3, 6])
@pytest.mark.parametrize(
    "after", [lambda o: CosineAnnealingLR(o, 20), lambda o: FlatCosineLR(o, 20, flat=0)], ids=["torch", "ours"]
)
def test_during_a_warm_up_and_after_it(before, after):
    optimizer = sgd(0.1)
    schedule = WarmupLR(optimizer, 4, after=after(optimizer))
    rows = followed(schedule, before, 0.5, 10)
    for row in rows:  # both change by the same factors
        assert row[1] / row[0] == pytest.approx(rows[0][1] / rows[0][0])
    assert schedule.get_last_lr() == lrs(optimizer)


def test_before_a_metric():
    optimizer = sgd(0.1)
    schedule = WarmupLR(optimizer, 2, after=ReduceLROnPlateau(optimizer, factor=0.5, patience=0))
    optimizer.step()
    schedule.step()
    add(optimizer, 0.3)
    for _ in range(4):
        schedule.step(1.0)
    assert optimizer.param_groups[1]["lr"] / optimizer.param_groups[0]["lr"] == pytest.approx(0.3 / 0.055)


@by_name
def test_resumes_after_every_step(name):
    make = SCHEDULES[name][0]

    def start(steps):
        schedule = make(sgd(0.1))
        run(schedule, 2)
        add(schedule.optimizer, 0.05)
        run(schedule, steps)
        return schedule

    expected = [row for row in followed(make(sgd(0.1)), 2, 0.05, 9)]
    for stop in (0, 1, 5):
        saved = start(stop)
        resumed = make(sgd(0.7, 0.7))
        resumed.optimizer.load_state_dict(saved.optimizer.state_dict())
        resumed.load_state_dict(saved.state_dict())
        rows = []
        for _ in range(9 - stop):
            rows.append(lrs(resumed.optimizer))
            resumed.optimizer.step()
            resumed.step()
        assert rows == expected[stop:]


def test_a_ramp_needs_an_end_for_it():
    optimizer = sgd(0.1, 0.2)
    schedule = RampLR(optimizer, [1.0, 2.0], 8)
    run(schedule, 2)
    add(optimizer, 0.4)
    before = lrs(optimizer), schedule.state_dict()
    for call in (schedule.step, lambda: schedule.lrs_at(1)):
        with pytest.raises(ValueError, match="end_lr has 2 values and there are 3 parameter groups by now; append"):
            call()
    assert (lrs(optimizer), schedule.state_dict()) == before
    schedule.end_lrs.append(4.0)
    schedule.step()
    assert lrs(optimizer)[2] == pytest.approx(0.4 * 10 ** (1 / 8))


def test_a_ramp_does_not_start_at_zero():
    schedule = RampLR(sgd(0.1), 1.0, 8)
    run(schedule, 2)
    add(schedule.optimizer, 0.0)
    with pytest.raises(ValueError, match="where the ramp starts, must be above 0"):
        schedule.step()
    assert schedule.last_epoch == 2


@pytest.mark.parametrize("cap", [16, 64, 1000])
def test_with_growing_batches_it_keeps_what_it_is_given_and_then_follows(cap):
    loader = DataLoader(TensorDataset(torch.arange(10_000)), batch_size=8)
    expected = DataLoader(TensorDataset(torch.arange(10_000)), batch_size=8)
    optimizer, alone = sgd(0.1), sgd(0.1)
    schedule = BatchSizeScheduler(StepLR(optimizer, 1, 0.5), loader, max_batch_size=cap)
    reference = BatchSizeScheduler(StepLR(alone, 1, 0.5), expected, max_batch_size=cap)
    optimizer.step()
    alone.step()
    for _ in range(2):
        schedule.step()
        reference.step()
    add(optimizer, 0.3)
    noise = 0.3 / schedule.batch_size
    for step in range(5):
        assert schedule.batch_size == reference.batch_size
        assert schedule.get_last_lr()[0] == reference.get_last_lr()[0]
        assert schedule.get_last_lr()[1] / schedule.batch_size == pytest.approx(noise * 0.5**step)
        saved = schedule.state_dict()
        schedule.load_state_dict(saved)
        assert schedule.state_dict() == saved
        schedule.step()
        reference.step()
    assert len(saved["scheduled"]) == len(saved["highest"]) == 2


def test_a_table_on_the_device_has_none_for_it():
    optimizer = sgd(0.1)
    schedule = on_device(HalvingLR(optimizer), 9)
    schedule.step()
    add(optimizer, 0.3)
    state = {"step": 3}
    for call in (schedule.step, lambda: schedule.load_state_dict(state)):
        with pytest.raises(RuntimeError, match=r"1 parameter group\(s\) were added after on_device.*add them before"):
            call()
    assert lrs(optimizer) == [0.05, 0.3]
    assert schedule.state_dict() == {"step": 1}
