"""What a step costs in each implementation, on your own parameters: `fusedopt.compare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fusedopt.benchmark.candidates import Candidates, named, of_optimizer
from fusedopt.benchmark.devices import DEVICES
from fusedopt.benchmark.implementations import DEFAULT_CASES
from fusedopt.benchmark.measuring import QUIET, Measurements
from fusedopt.benchmark.parameter_sets import Shape
from fusedopt.benchmark.results import Comparison
from fusedopt.benchmark.subjects import Subject, find_subject, of_model, of_shapes
from fusedopt.benchmark.timing import OtherWork


def compare(
    subject: Optimizer | nn.Module | Sequence[Shape] | str,
    optimizers: Sequence[str] | None = None,
    *,
    implementations: Sequence[str] | None = None,
    batch: int | None = None,
    inputs: Tensor | None = None,
    input_shape: Shape | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seconds: float = 100.0,
    say: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Times `step()` in fusedopt's, torch's and other installed packages' implementations, in turns.

    All work on copies of the parameters, with random gradients and a tiny learning rate: nothing of yours changes.

    Args:
        subject: your optimizer, whose class and options are used; a model; shapes of parameters; or a name that
            :func:`fusedopt.benchmark.subjects.find_subject` knows.
        optimizers: names such as ``AdamW`` and ``SGD-Nesterov``, by default four; not together with your optimizer.
        implementations: names of those to time; by default all that are installed.
        batch: times whole training steps too, on batches of this many random inputs; needs a model.
        inputs: a batch for the model, instead of random inputs.
        input_shape: of one drawn input, where the model's source does not tell.
        dtype: of the parameters; their own by default.
        device: where to measure; that of the parameters by default.
        seconds: for everything, roughly. Large models may take longer: each step is timed at least eight times.
        say: called with a line about what comes next.

    Raises:
        ValueError: an argument names something that does not exist or cannot be measured.
        TypeError: an optimizer that is neither torch's nor ours.
    """
    start = perf_counter()
    found, candidates = _what(subject, optimizers, input_shape)
    known = dict.fromkeys(name for each in candidates for name in each.factories)
    if unknown := [name for name in implementations or () if name not in known]:
        raise ValueError(f"there is no implementation {unknown[0]!r} here, only {', '.join(known)}")
    batch = len(inputs) if inputs is not None and batch is None else batch
    if batch is not None and found.model is None:
        raise ValueError(
            f"a whole training step needs a model, and {found.name} is a list of shapes: give one, such as "
            "torchvision:resnet18, timm:NAME or package.module:factory"
        )
    place = torch.device(device) if device is not None else found.parameters[0].device
    if place.type not in DEVICES:
        raise ValueError(f"steps are timed on {' and '.join(DEVICES)}, not on {place.type}")
    say("timing a copy")
    run = Measurements(found, found.drawn(dtype, place), DEVICES[place.type](), dtype)
    for position, each in enumerate(candidates):
        parts = (len(candidates) - position) * (1 if batch is None else 2)
        run.seconds = max(0.0, seconds - (perf_counter() - start)) / parts
        others = OtherWork()
        say(f"timing steps of {each.name}")
        rows = run.steps(each.only(implementations))
        if batch is not None and rows:
            say(f"timing training with {each.name}")
            rows = run.training(each, rows, batch, inputs)
        run.rows += rows
        if (cores := others.cores()) > QUIET:
            run.busy[each.name] = cores
    return run.comparison(batch)


def _what(subject: Any, optimizers: Sequence[str] | None, shape: Shape | None) -> tuple[Subject, list[Candidates]]:
    if isinstance(subject, Optimizer):
        if optimizers is not None:
            raise ValueError("an optimizer at hand is compared with itself; give a model to compare others on")
        at_hand, candidates = of_optimizer(subject)
        return at_hand, [candidates]
    chosen = [named(name) for name in optimizers or DEFAULT_CASES]
    if isinstance(subject, str):
        found = find_subject(subject)
    elif isinstance(subject, nn.Module):
        found = of_model(subject)
    else:
        found = of_shapes(subject)
    return dataclasses.replace(found, input_shape=shape or found.input_shape), chosen
