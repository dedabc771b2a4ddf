"""Every scheduler of torch over our classes, against torch's classes; and the numbers of the slides."""

import math

import pytest
import torch
from schedule_runs import parameter
from torch.optim import lr_scheduler as sched
from torch.optim.swa_utils import SWALR

import fusedopt
from fusedopt.schedulers import simulate

pytestmark = pytest.mark.usefixtures("one_thread")

METRICS = [1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.8]

SCHEDULERS = {
    "LambdaLR": lambda o: sched.LambdaLR(o, [lambda t: 1 / (t + 1), lambda t: 0.95**t]),
    "MultiplicativeLR": lambda o: sched.MultiplicativeLR(o, lambda t: 0.95),
    "StepLR": lambda o: sched.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: sched.MultiStepLR(o, [2, 5, 6], 0.5),
    "ConstantLR": lambda o: sched.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: sched.LinearLR(o, 0.1, 0.9, 5),
    "ExponentialLR": lambda o: sched.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: sched.PolynomialLR(o, 7, 2),
    "CosineAnnealingLR": lambda o: sched.CosineAnnealingLR(o, 5, 1e-4),
    "CosineAnnealingWarmRestarts": lambda o: sched.CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: sched.CyclicLR(o, 1e-3, [1e-2, 2e-2], 3),
    "CyclicLR-triangular2": lambda o: sched.CyclicLR(o, 1e-3, 1e-2, 2, mode="triangular2"),
    "CyclicLR-exp_range": lambda o: sched.CyclicLR(o, 1e-3, 1e-2, 2, 3, mode="exp_range", gamma=0.9),
    "CyclicLR-lr-only": lambda o: sched.CyclicLR(o, 1e-3, 1e-2, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: sched.OneCycleLR(o, [1e-2, 2e-2], epochs=3, steps_per_epoch=4),
    "OneCycleLR-three-phase": lambda o: sched.OneCycleLR(o, 1e-2, 12, three_phase=True, anneal_strategy="linear"),
    "OneCycleLR-lr-only": lambda o: sched.OneCycleLR(o, 1e-2, 12, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: sched.ReduceLROnPlateau(o, patience=2),
    "SequentialLR": lambda o: sched.SequentialLR(o, [sched.LinearLR(o, 0.1), sched.CosineAnnealingLR(o, 6)], [4]),
    "ChainedScheduler": lambda o: sched.ChainedScheduler([sched.LinearLR(o, 0.1), sched.ExponentialLR(o, 0.9)]),
    "SWALR": lambda o: SWALR(o, 0.005, 5),
}
CYCLES = {"CyclicLR", "CyclicLR-triangular2", "CyclicLR-exp_range", "OneCycleLR", "OneCycleLR-three-phase"}

OPTIMIZERS = {
    "sgd": (fusedopt.SGD, torch.optim.SGD, {"momentum": 0.9}),
    "rmsprop": (fusedopt.RMSprop, torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
    "adagrad": (fusedopt.Adagrad, torch.optim.Adagrad, {}),
    "adam": (fusedopt.Adam, torch.optim.Adam, {}),
    "adamw": (fusedopt.AdamW, torch.optim.AdamW, {"amsgrad": True}),
    # torch has no LAMB and no SWATS: their learning rates and betas are held against AdamW's.
    "lamb": (fusedopt.LAMB, torch.optim.AdamW, {}),
    "swats": (fusedopt.SWATS, torch.optim.AdamW, {}),
}


def test_none_of_torchs_schedulers_is_left_out():
    assert {name.partition("-")[0] for name in SCHEDULERS} == {*sched.__all__, "SWALR"} - {"LRScheduler"}


def trajectory(cls, kwargs, make, steps=12, reload_at=None):
    """For each step: learning rates and momenta used, and parameters after it, all in float64."""

    def build():
        generator = torch.Generator().manual_seed(0)
        shapes = [(5,), (3, 4)]
        params = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
        optimizer = cls([{"params": [params[0]]}, {"params": [params[1]], "lr": 0.02}], lr=0.01, **kwargs)
        return params, optimizer, make(optimizer)

    params, optimizer, schedule = build()
    generator = torch.Generator().manual_seed(1)
    seen = []
    for step in range(steps):
        if step == reload_at:
            states, values = (optimizer.state_dict(), schedule.state_dict()), params
            params, optimizer, schedule = build()
            with torch.no_grad():
                for p, value in zip(params, values, strict=True):
                    p.copy_(value)
            optimizer.load_state_dict(states[0])
            schedule.load_state_dict(states[1])
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        groups = optimizer.param_groups
        rates = [(g["lr"], g["betas"] if "betas" in g else g.get("momentum")) for g in groups]
        optimizer.step()
        if isinstance(schedule, sched.ReduceLROnPlateau):
            schedule.step(METRICS[step])
        else:
            schedule.step()
        seen.append((rates, [p.detach().clone() for p in params]))
    return seen


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_same_as_over_torchs_class(name, optimizer):
    ours, torchs, kwargs = OPTIMIZERS[optimizer]
    make = SCHEDULERS[name]
    if optimizer == "adagrad" and name in CYCLES:
        for cls in (ours, torchs):
            with pytest.raises(ValueError, match="optimizer must support momentum or beta1"):
                trajectory(cls, kwargs, make)
        return
    expected = trajectory(torchs, kwargs, make)
    for reload_at in (None, 7):
        got = trajectory(ours, kwargs, make, reload_at=reload_at)
        assert [rates for rates, _ in got] == [rates for rates, _ in expected]
        if optimizer not in ("lamb", "swats"):
            torch.testing.assert_close([p for _, p in got], [p for _, p in expected], rtol=1e-12, atol=1e-14)
    rates = [rates for rates, _ in expected]
    assert any(step != rates[0] for step in rates)  # something was scheduled
    assert (len({momentum for step in rates for _, momentum in step}) > 1) == (name in CYCLES)


@pytest.mark.parametrize("name", sorted(CYCLES))
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lamb", "swats"])
def test_the_cycled_momentum_reaches_the_step(name, optimizer):
    ours, _, kwargs = OPTIMIZERS[optimizer]
    with_cycle = trajectory(ours, kwargs, SCHEDULERS[name])

    def fixed(o):
        schedule = SCHEDULERS[name](o)
        schedule.cycle_momentum = False
        return schedule

    assert not torch.equal(with_cycle[-1][1][0], trajectory(ours, kwargs, fixed)[-1][1][0])


# The numbers of the slides


def optimizer(lr=1e-3, cls=fusedopt.SGD, **kwargs):
    return cls([parameter()], lr=lr, **kwargs)


def values(schedule, steps, metrics=None):
    return simulate(schedule, steps, metrics).lr[:, 0].tolist()


def close(expected):
    return pytest.approx(expected, rel=5e-7)


def test_exponential():
    assert values(sched.ExponentialLR(optimizer(0.1), 0.1), 5) == close([0.1, 0.01, 1e-3, 1e-4, 1e-5])


def test_step():
    assert values(sched.StepLR(optimizer(0.01), 2), 4) == close([0.01, 0.01, 0.001, 0.001])


def test_cosine_rises_again_after_its_end():
    lr = values(sched.CosineAnnealingLR(optimizer(), T_max=32, eta_min=1e-4), 65)
    expected = {0: 1e-3, 8: 8.681981e-4, 16: 5.5e-4, 24: 2.318019e-4, 32: 1e-4, 33: 1.021669e-4, 64: 1e-3}
    assert {step: lr[step] for step in expected} == close(expected)


RESTART = [1e-3, 9.657458e-4, 8.681981e-4, 7.222075e-4, 5.5e-4, 3.777925e-4, 2.318019e-4, 1.342542e-4]


def test_warm_restarts():
    schedule = sched.CosineAnnealingWarmRestarts(optimizer(), T_0=8, T_mult=1, eta_min=1e-4)
    assert values(schedule, 32) == close(RESTART * 4)
    lr = values(sched.CosineAnnealingWarmRestarts(optimizer(), T_0=8, T_mult=2, eta_min=1e-4), 25)
    expected = {7: 1.342542e-4, 8: 1e-3, 16: 5.5e-4, 23: 1.086466e-4, 24: 1e-3}
    assert {step: lr[step] for step in expected} == close(expected)


def cyclic(mode="triangular", gamma=1.0):
    return sched.CyclicLR(optimizer(momentum=0.9), 1e-4, 1e-3, step_size_up=4, mode=mode, gamma=gamma)


def test_cyclic():
    triangle = [1e-4, 3.25e-4, 5.5e-4, 7.75e-4, 1e-3, 7.75e-4, 5.5e-4, 3.25e-4]
    assert values(cyclic(), 17) == close([*triangle, *triangle, 1e-4])
    momentum = simulate(cyclic(), 6).momentum[:, 0].tolist()
    assert momentum == close([0.9, 0.875, 0.85, 0.825, 0.8, 0.825])
    assert values(cyclic("triangular2"), 13)[12] == close(5.5e-4)
    assert values(cyclic("exp_range", 0.9), 5)[4] == close(6.9049e-4)


def test_cyclic_of_chapter_6():
    schedule = sched.CyclicLR(
        optimizer(momentum=0.9), 1e-4, 1e-3, step_size_up=2, mode="exp_range", gamma=math.sqrt(0.5)
    )
    expected = [1e-4, 4.181981e-4, 5.5e-4, 2.59099e-4, 1e-4, 1.795495e-4, 2.125e-4, 1.397748e-4, 1e-4]
    assert values(schedule, 9) == close(expected)


def test_one_cycle():
    def make():
        return sched.OneCycleLR(optimizer(momentum=0.9), max_lr=1e-3, steps_per_epoch=8, epochs=4)

    lr, momentum = simulate(make(), 33)
    expected = {0: 4e-5, 1: 7.16723e-5, 8: 9.885164e-4, 9: 9.992134e-4, 16: 7.540387e-4, 31: 4e-9, 32: 4.9134e-6}
    assert {step: lr[step].item() for step in expected} == pytest.approx(expected, rel=1e-5)
    assert int(lr.argmax()) == int(momentum.argmin()) == 9
    assert momentum[[0, 9, 31], 0].tolist() == close([0.95, 0.8500787, 0.95])
    with pytest.raises(ValueError, match="33"):
        simulate(make(), 34)


def test_plateau():
    schedule = sched.ReduceLROnPlateau(optimizer(0.1), mode="min", factor=0.1, patience=2)
    # Lower after the third epoch without improvement, so for the sixth value, and again three later.
    expected = [0.1] * 5 + [0.01] * 3 + [0.001]
    assert values(schedule, 9, [1] + [0.9] * 7) == close(expected)
