"""The numbers printed on the slides: make_lr_fn, the decays, the range test."""

import numpy as np
import pytest
from schedule_runs import lrs, parameter, run, sgd
from torch.optim.lr_scheduler import LambdaLR

import fusedopt
from fusedopt.schedulers import (
    ExponentialDecayLR,
    HalvingLR,
    InverseDecayLR,
    RampLR,
    make_lr_fn,
)


def test_decays_of_the_slides():
    def of(schedule):
        return [round(lr, 7) for lr in run(schedule, 6)]

    assert of(ExponentialDecayLR(sgd(0.1), 0.1)) == [0.1, 0.0904837, 0.0818731, 0.0740818, 0.067032, 0.0606531]
    assert run(HalvingLR(sgd(0.1)), 6) == [0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125]
    assert of(InverseDecayLR(sgd(0.1), 0.1)) == [0.1, 0.0909091, 0.0833333, 0.0769231, 0.0714286, 0.0666667]


_EXP = "1 1.25892541 1.58489319 1.99526231 2.51188643 3.16227766 3.98107171 5.01187234 6.30957344 7.94328235 10"
RAMPS = {
    "exp": [float(factor) for factor in _EXP.split()],
    "linear": [1, 1.9, 2.8, 3.7, 4.6, 5.5, 6.4, 7.3, 8.2, 9.1, 10],
}


@pytest.mark.parametrize("mode", RAMPS)
def test_ramps_of_the_slides(mode):
    factors = make_lr_fn(0.01, 0.1, 10, step_mode=mode)(np.arange(11))
    np.testing.assert_array_equal(np.round(factors, 8), RAMPS[mode])
    ramp = RampLR(sgd(0.01), 0.1, 10, mode)
    assert run(ramp, 11) == pytest.approx(0.01 * factors, rel=1e-14)
    assert run(ramp, 5) == pytest.approx([0.1] * 5, rel=1e-15)  # and stays


def test_lambda_lr_of_the_slides():
    optimizer = fusedopt.Adam([parameter()], lr=0.01)
    schedule = LambdaLR(optimizer, lr_lambda=make_lr_fn(0.01, 0.1, 10))
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr()[0] == 0.012589254117941673


def test_range_test_grids_of_the_slides():
    assert 3e-4 * make_lr_fn(3e-4, 0.1, 100)(86) == pytest.approx(0.04434013138652989, rel=1e-13)
    assert RampLR(sgd(3e-4), 0.1, 100).lrs_at(86) == pytest.approx([0.04434013138652989], rel=1e-13)
    assert RampLR(sgd(3e-4), 0.1, 99).lrs_at(58) == pytest.approx([0.009019270843], rel=1e-9)


def test_ramp_takes_an_end_for_each_group():
    optimizer = sgd(0.01, 0.001)
    schedule = RampLR(optimizer, [0.1, 0.01], 4)
    run(schedule, 4)
    assert lrs(optimizer) == pytest.approx([0.1, 0.01], rel=1e-15)
