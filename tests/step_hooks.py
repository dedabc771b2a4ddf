"""Step hooks that hold something, in the ways in which scripts and libraries write them."""

from __future__ import annotations

import copy
import functools
import random
import types
from collections import deque

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fusedopt.training import ExponentialAverage


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


# Each attaches a hook to a run's optimizer, and returns a function that reads what the hook holds.
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
