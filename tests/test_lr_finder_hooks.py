"""Step hooks take part in a range test, and what they hold is put back."""

import collections.abc
import copy
import functools
import random
import types
from collections import deque

import numpy as np
import pytest
import torch
from test_lr_finder_restore import assert_same
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import fusedopt
from fusedopt.gradients.noise import ExponentialGradientNoise
from fusedopt.lr_finder import LRFinder, find_lr
from fusedopt.training import ExponentialAverage

pytestmark = pytest.mark.usefixtures("one_thread")


def data(size=24):
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(size, 4, generator=generator), torch.randint(2, (size,), generator=generator))


class Run:
    """A model, its optimizer and a loader; `step` trains on fixed batches."""

    def __init__(self, optimizer_class=fusedopt.AdamW):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
        self.optimizer = optimizer_class(self.model.parameters(), lr=1e-2)
        self.criterion = nn.CrossEntropyLoss()
        self.loader = DataLoader(data(), 8)

    def train(self, steps=3):
        for inputs, labels in [*self.loader][:steps]:
            self.optimizer.zero_grad()
            self.criterion(self.model(inputs), labels).backward()
            self.optimizer.step()

    def find(self, how="find_lr", **options):
        options = {"num_iter": 12, "end_lr": 1.0, "diverge_th": None} | options
        if how == "find_lr":
            return find_lr(self.model, self.optimizer, self.criterion, self.loader, **options)
        finder = LRFinder(self.model, self.optimizer, self.criterion)
        finder.range_test(self.loader, **options)
        finder.reset()
        return finder.result


both = pytest.mark.parametrize("how", ["find_lr", "LRFinder"])
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


class Shadow:
    """An average as many write it themselves: in a dictionary, by numbers of its own, with a log."""

    def __init__(self, model):
        self.model, self.updates = model, 0
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.replaced = [p.detach().clone() for p in model.parameters()]
        self.array = np.zeros(2)
        self.rng = [random.Random(0), np.random.default_rng(0), torch.Generator()]
        self.seen, self.recent, self.ids = [], deque(maxlen=3), set()

    def update(self, *_):
        self.updates += 1
        for i, (name, p) in enumerate(self.model.named_parameters()):
            self.weights[name].data.lerp_(p.data, 0.1)
            self.replaced[i] = 0.9 * self.replaced[i] + 0.1 * p.detach()
        self.array += self.rng[0].random() + self.rng[1].random() + torch.rand(1, generator=self.rng[2]).item()
        self.seen.append(self.updates)
        self.recent.append(self.updates)
        self.ids.add(self.updates)

    def state(self):
        values = (self.updates, self.weights, self.replaced, self.array, self.seen, list(self.recent), self.ids)
        states = [self.rng[0].getstate(), self.rng[1].bit_generator.state, self.rng[2].get_state()]
        return copy.deepcopy([*values[:-1], sorted(self.ids), states])


class Called(Shadow):
    __call__ = Shadow.update


class Module(nn.Module):
    """A module whose method is a hook."""

    def __init__(self, model):
        super().__init__()
        self.shadow, self.updates = Shadow(model), 0
        self.average = AveragedModel(model)
        self.source = [model]

    def update(self, *_):
        self.updates += 1
        self.average.update_parameters(self.source[0])

    def state(self):
        return [self.updates, copy.deepcopy(self.average.state_dict())]


def averaged_by(factory):
    """As scripts do it: a function of the variables around it."""

    def attach(run):
        average = factory(run.model)
        average.register_buffer("unused", torch.zeros(1), persistent=False)
        run.optimizer.register_step_post_hook(lambda *_: average.update_parameters(run.model))
        return lambda: copy.deepcopy(average.state_dict())

    return attach


def a_function_with_variables(run):
    count, log, last = 0, [], None

    def note():
        nonlocal count, last
        count += 1
        last = [count]

    def hook(optimizer, args, kwargs, default=[0]):  # noqa: B006
        note()
        log.append(count)
        default[0] += 1

    run.optimizer.register_step_pre_hook(hook)
    return lambda: (count, last, list(log), list(hook.__defaults__[0]))


AVERAGE = None
COUNT = 0


def global_hook(*_):
    global COUNT
    COUNT += 1
    update_globals()


def update_globals():
    AVERAGE.update_parameters(AVERAGE.source[0])


def a_function_with_global_variables(run):
    globals().update(AVERAGE=AveragedModel(run.model), COUNT=5)
    AVERAGE.source = [run.model]
    run.optimizer.register_step_post_hook(global_hook)
    return lambda: (COUNT, copy.deepcopy(AVERAGE.state_dict()))


def shadow_by(register):
    def attach(run):
        shadow = Shadow(run.model)
        register(run, shadow)
        return shadow.state

    return attach


def other_of(kind):
    def attach(run):
        owner = kind(run.model)
        run.optimizer.register_step_post_hook(owner if callable(owner) and kind is Called else owner.update)
        return owner.state

    return attach


class Counter:
    """An object without a number of torch's in it."""

    def __init__(self):
        self.count = 0

    def tick(self):
        self.count += 1


def a_counter(run):
    counter = Counter()
    run.optimizer.register_step_post_hook(lambda *_: counter.tick())
    return lambda: counter.count


def an_average_of_ones_own(run):
    shadow = Shadow(run.model)
    run.optimizer.register_step_post_hook(lambda *_: shadow.update())
    return shadow.state


def an_average_in_an_object(run):
    trainer = Counter()
    trainer.average, trainer.loader = Shadow(run.model), run.loader
    trainer.on_step = types.MethodType(lambda self, *_: self.average.update(), trainer)
    run.optimizer.register_step_post_hook(trainer.on_step)
    return trainer.average.state


def a_wrapped_function(run):
    """Of which torch's own function is what the optimizer gets."""
    weights = [p.detach().clone() for p in run.model.parameters()]

    @torch.no_grad()
    def hook(*_):
        torch._foreach_lerp_(weights, list(run.model.parameters()), 0.1)

    run.optimizer.register_step_post_hook(hook)
    return lambda: copy.deepcopy(weights)


def appending(run):
    note = [].append
    run.optimizer.register_step_post_hook(lambda *_: note(1))
    return lambda: list(note.__self__)


def a_schedule_stepped_by_a_hook(run):
    schedule = torch.optim.lr_scheduler.StepLR(run.optimizer, 2, 0.5)
    run.optimizer.register_step_post_hook(lambda *_: schedule.step())
    return lambda: (copy.deepcopy(schedule.state_dict()), run.optimizer.param_groups[0]["lr"])


def a_second_optimizer(run):
    weight = nn.Parameter(torch.ones(2))
    second = torch.optim.Adam([weight])

    def step(*_):
        weight.grad = torch.ones(2)
        second.step()

    run.optimizer.register_step_post_hook(step)
    return lambda: (weight.detach().clone(), copy.deepcopy(second.state_dict()))


HOLDERS = {
    "swa": averaged_by(AveragedModel),
    "ema": averaged_by(functools.partial(ExponentialAverage, decay=0.9)),
    "method": other_of(Shadow),
    "callable": other_of(Called),
    "method of a module": other_of(Module),
    "partial": shadow_by(lambda run, s: run.optimizer.register_step_pre_hook(functools.partial(Shadow.update, s))),
    "method in a variable": shadow_by(
        lambda run, s: (lambda f: run.optimizer.register_step_pre_hook(lambda *_: f()))(s.update)
    ),
    "variables": a_function_with_variables,
    "global variables": a_function_with_global_variables,
    "wrapped": a_wrapped_function,
    "append": appending,
    "an object": a_counter,
    "an average of one's own": an_average_of_ones_own,
    "an average in the owner": an_average_in_an_object,
    "schedule": a_schedule_stepped_by_a_hook,
    "second optimizer": a_second_optimizer,
}


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
