"""Step hooks take part in a range test, and what they hold is put back."""

import collections.abc
import copy

import pytest
import torch
from finder_runs import assert_same
from finder_training import Run, both
from step_hooks import HOLDERS, Shadow
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import fusedopt
from fusedopt.gradients.noise import ExponentialGradientNoise
from fusedopt.lr_finder import LRFinder, find_lr

pytestmark = pytest.mark.usefixtures("one_thread")


NOISES = {
    "polynomial": lambda o: fusedopt.GradientNoise(o, eta=0.3),
    "exponential": lambda o: ExponentialGradientNoise(o, eta=0.3, steps_per_epoch=3),
}


@both
@pytest.mark.parametrize("make", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_gradient_noise_takes_part_in_the_test_and_goes_on_as_if_there_had_been_none(how, make, steps_before):
    expected, run, quiet = Run(), Run(), Run()
    noises = [make(expected.optimizer), make(run.optimizer)]
    for each in (expected, run, quiet):
        each.train(steps_before)
    result = run.find(how)
    assert (noises[1].steps, noises[1].variance(noises[1].steps)) == (steps_before, noises[0].variance(steps_before))
    expected.train()
    run.train()
    assert_same([*run.model.parameters()], [*expected.model.parameters()])
    assert_same(noises[1].state_dict(), noises[0].state_dict())
    assert result.losses != quiet.find(how).losses  # a test without the noise would be of another training


@pytest.mark.parametrize("optimizer_class", [fusedopt.AdamW, fusedopt.SWATS, torch.optim.AdamW])
@pytest.mark.parametrize("attach", HOLDERS.values(), ids=HOLDERS)
def test_what_hooks_hold_is_put_back(attach, optimizer_class):
    run = Run(optimizer_class)
    state = attach(run)
    run.train()
    before = state()
    find_lr(run.model, run.optimizer, run.criterion, run.loader, num_iter=5, end_lr=1e-2, diverge_th=None)
    assert_same(state(), before)
    run.train()
    with pytest.raises(AssertionError):  # the hook does change something
        assert_same(state(), before)


@both
@pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
def test_what_hooks_of_all_optimizers_hold_is_put_back(how, register):
    run = Run()
    shadow = Shadow(run.model)
    handle = register(shadow.update)
    try:
        run.train()
        before = shadow.state()
        run.find(how)
        assert_same(shadow.state(), before)
    finally:
        handle.remove()


@both
@pytest.mark.parametrize("before", [0, 3])
def test_a_capture_records_the_training_alone(how, before):
    histories = []
    for disturb in (False, True):
        run = Run()
        with fusedopt.capture(run.model, max_records=4) as history:  # which thins itself out
            run.train(before)
            if disturb:
                run.find(how)
            run.train()
        histories.append(history)
    assert histories[0].steps == ([0, 2, 4] if before else [0, 1, 2])
    assert_same(vars(histories[1]), vars(histories[0]))


def test_hooks_on_an_optimizer_that_another_wraps():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner

        param_groups = property(lambda self: self.inner.param_groups)
        state = property(lambda self: self.inner.state)

        def zero_grad(self, set_to_none=True):
            self.inner.zero_grad(set_to_none)

        def step(self, closure=None):
            self.inner.step(closure)

    run = Run()
    noise = fusedopt.GradientNoise(run.optimizer)
    run.train()
    before = copy.deepcopy([*run.model.parameters()]), noise.state_dict()
    run.optimizer = Wrapper(run.optimizer)
    run.find()
    assert_same(([*run.model.parameters()], noise.state_dict()), before)


def test_mappings_that_may_be_files_are_left_alone():
    class Store(collections.abc.MutableMapping):
        """As h5py's files and Python's shelves are."""

        __getitem__ = __setitem__ = __delitem__ = __iter__ = __len__ = None

    run = Run()
    stores, rows = [Store()], collections.UserDict(first=torch.ones(2))
    run.optimizer.register_step_post_hook(lambda *_: (stores, rows["first"].add_(1), rows.setdefault("more", 1)))
    run.find()
    assert rows["first"].tolist() == [1, 1]
    assert list(rows) == ["first"]


def test_hooks_come_and_go_as_if_there_had_been_no_test():
    run = Run()
    finder = LRFinder(run.model, run.optimizer, run.criterion)
    calls = []
    late = run.optimizer.register_step_post_hook(lambda *_: calls.append("late"))  # after the finder was made
    once = run.optimizer.register_step_post_hook(lambda *_: once.remove())
    finder.range_test(run.loader, num_iter=2, end_lr=0.1)
    finder.reset()
    assert calls == []
    assert list(run.optimizer._optimizer_step_post_hooks) == [late.id, once.id]
    run.train(1)
    assert calls == ["late"]
    assert list(run.optimizer._optimizer_step_post_hooks) == [late.id]


def test_a_result_that_a_hook_keeps_can_still_be_differentiated():
    run = Run()
    weight = torch.ones(2, requires_grad=True)
    kept = {"loss": (weight**2).exp()}
    run.optimizer.register_step_post_hook(lambda *_: kept)
    run.find()
    kept["loss"].sum().backward()
    assert weight.grad is not None
