"""The package's own schedules: their formulas, resuming, composition, tensor learning rates."""

import copy
import io
import math

import pytest
import torch
from schedule_runs import lrs, parameter, run, sgd
from schedules import SCHEDULES, by_name
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    MultiStepLR,
    SequentialLR,
)

import fusedopt
from fusedopt.schedulers import (
    ExponentialDecayLR,
    FlatCosineLR,
    HalvingLR,
    InverseDecayLR,
    WarmupLR,
)

MAKERS = {name: make for name, (make, _) in SCHEDULES.items()}


@by_name
def test_equals_its_formula_after_every_step_in_every_group(name):
    make, formula = SCHEDULES[name]
    optimizer = sgd(0.1, 0.023)
    schedule = make(optimizer)
    for step in range(100_001):
        if step < 60 or step % 9973 == 0 or step == 100_000:
            assert lrs(optimizer) == [formula(0.1, step), formula(0.023, step)], step  # to the last bit
            assert lrs(optimizer) == schedule.get_last_lr() == schedule.lrs_at(step)
        optimizer._opt_called = True
        schedule.step()


@by_name
def test_resumes_at_every_step(name):
    expected = run(MAKERS[name](sgd(0.1, 0.02)), 24)
    for stop in range(24):
        schedule = MAKERS[name](sgd(0.1, 0.02))
        run(schedule, stop)
        file = io.BytesIO()
        torch.save((schedule.state_dict(), schedule.optimizer.state_dict()), file)
        file.seek(0)
        state, optimizer_state = torch.load(file, weights_only=True)
        for order in ("optimizer first", "scheduler first", "scheduler only"):
            resumed = MAKERS[name](sgd(0.1, 0.02))
            if order == "optimizer first":
                resumed.optimizer.load_state_dict(optimizer_state)
            resumed.load_state_dict(state)
            if order == "scheduler first":
                resumed.optimizer.load_state_dict(optimizer_state)
            assert resumed.state_dict() == state
            assert run(resumed, 24 - stop) == expected[stop:], (stop, order)


def test_resumes_by_last_epoch_as_torchs_do():
    expected = run(InverseDecayLR(sgd(0.1), 0.1), 12)
    optimizer = sgd(0.05)  # whatever the groups hold
    optimizer.param_groups[0]["initial_lr"] = 0.1
    assert run(InverseDecayLR(optimizer, 0.1, last_epoch=4), 7) == expected[5:]
    with pytest.raises(KeyError, match="initial_lr"):
        InverseDecayLR(sgd(0.1), 0.1, last_epoch=4)


@by_name
def test_a_state_does_not_change_with_later_steps_and_loading_does_not_change_it(name):
    schedule = MAKERS[name](sgd(torch.tensor(0.1, dtype=torch.float64)))
    run(schedule, 3)
    state = schedule.state_dict()
    before = copy.deepcopy(state)
    run(schedule, 4)
    assert state == before
    other = MAKERS[name](sgd(torch.tensor(0.1, dtype=torch.float64)))
    other.load_state_dict(state)
    run(other, 4)
    assert state == before


@by_name
def test_second_in_a_sequence_starts_at_its_beginning(name):
    make, formula = SCHEDULES[name]
    optimizer = sgd(0.1)
    sequence = SequentialLR(optimizer, [ExponentialLR(optimizer, 0.5), make(optimizer), ConstantLR(optimizer)], [3, 20])
    expected = [0.1, 0.05, 0.025, *(formula(0.1, t) for t in range(17))]
    assert run(sequence, 20) == pytest.approx(expected, rel=1e-15)


@by_name
def test_first_in_a_sequence_and_resumed_there(name):
    def make():
        optimizer = sgd(0.1)
        return SequentialLR(optimizer, [MAKERS[name](optimizer), CosineAnnealingLR(optimizer, 6)], [5])

    formula = SCHEDULES[name][1]
    expected = run(make(), 12)
    assert expected[:5] == pytest.approx([formula(0.1, t) for t in range(5)], rel=1e-15)
    for stop in (2, 5, 8):
        first, second = make(), make()
        run(first, stop)
        second.load_state_dict(first.state_dict())
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        assert run(second, 12 - stop) == expected[stop:]


@by_name
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
def test_multiplies_in_a_chain(name, position, as_tensor):
    make, formula = SCHEDULES[name]
    makers = [lambda o: MultiStepLR(o, [3, 7], 0.5), lambda o: InverseDecayLR(o, 0.2)]
    makers.insert(position, make)
    optimizer = sgd(torch.tensor(0.1, dtype=torch.float64) if as_tensor else 0.1)
    chain = ChainedScheduler([maker(optimizer) for maker in makers])
    expected = [formula(0.1, t) * 0.5 ** ((t >= 3) + (t >= 7)) / (1 + 0.2 * t) for t in range(16)]
    assert run(chain, 16) == pytest.approx(expected, rel=1e-12)


def test_a_change_by_hand_keeps_its_factor():
    schedule = ExponentialDecayLR(sgd(0.1), 0.1)
    run(schedule, 3)
    schedule.optimizer.param_groups[0]["lr"] *= 0.5
    assert run(schedule, 4) == pytest.approx([0.05 * math.exp(-0.1 * t) for t in range(3, 7)], rel=1e-14)


@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
def test_zero_ends_a_chain_quietly(as_tensor):
    optimizer = sgd(torch.tensor(0.1) if as_tensor else 0.1)
    chain = ChainedScheduler([FlatCosineLR(optimizer, 3), HalvingLR(optimizer)])
    assert run(chain, 6)[3:] == [0, 0, 0]


def test_a_chain_resumes():
    def make():
        optimizer = sgd(0.1)
        return ChainedScheduler([WarmupLR(optimizer, 4), ExponentialLR(optimizer, 0.9), HalvingLR(optimizer, 5)])

    expected = run(make(), 14)
    first, second = make(), make()
    run(first, 6)
    second.load_state_dict(first.state_dict())
    assert run(second, 8) == pytest.approx(expected[6:], rel=1e-14)


@by_name
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_tensor_stays_the_same_tensor(name, dtype):
    make, formula = SCHEDULES[name]
    base = torch.tensor(0.1, dtype=dtype)
    optimizer = sgd(base)
    schedule = make(optimizer)
    for step in range(200):
        assert optimizer.param_groups[0]["lr"] is base
        expected = torch.tensor(formula(float(torch.tensor(0.1, dtype=dtype)), step), dtype=dtype)
        torch.testing.assert_close(base, expected, rtol=1e-15 if dtype == torch.float64 else 0, atol=0)
        (last,) = schedule.get_last_lr()
        assert last.dtype == dtype
        assert last is not base
        optimizer.step()
        schedule.step()


@by_name
def test_a_tensor_of_one_element_follows(name):
    base = torch.tensor([0.1], dtype=torch.float64)
    optimizer = fusedopt.Adam([parameter()], lr=base, foreach=False)
    schedule = MAKERS[name](optimizer)
    for _ in range(5):
        optimizer._opt_called = True
        schedule.step()
    assert optimizer.param_groups[0]["lr"] is base
    assert base.item() == pytest.approx(SCHEDULES[name][1](0.1, 5), rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_follows_an_optimizer_that_was_given_a_tensor_later(dtype):
    optimizer = sgd(0.1)
    schedule = InverseDecayLR(optimizer, 0.1)
    tensor = torch.tensor(0.1, dtype=dtype)
    optimizer.param_groups[0]["lr"] = tensor
    for step in range(3000):
        assert tensor.item() == torch.tensor(0.1 / (1 + 0.1 * step), dtype=dtype).item(), step
        optimizer._opt_called = True
        schedule.step()
