"""The whole training step around an optimizer's, on drawn inputs: how much of it is the optimizer's?"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusedopt.benchmark.implementations import Factory
from fusedopt.benchmark.subjects import Subject
from fusedopt.benchmark.timing import WARM_UP, Spread, between, clock_for, interleave, mark

_FEWEST, _MOST = 3, 11  # repeats


@dataclass(frozen=True)
class Training:
    """A whole training step: forward, backward, the optimizer's step, and gradients set to None.

    Attributes:
        seconds: of all of it.
        step: seconds of the optimizer's step in it, which finds the caches as the backward pass leaves them.
        share: of the step in the whole, by the medians.
    """

    seconds: Spread
    step: Spread
    share: float


class _Loop:
    """A training step, to be called again and again."""

    def __init__(self, model: nn.Module, optimizer: Any, inputs: Any, place: torch.device) -> None:
        self._model, self._optimizer, self._inputs, self._place = model, optimizer, inputs, place
        self.steps: list[tuple[Any, Any]] = []

    def __call__(self) -> None:
        loss = _loss(self._model(self._inputs))
        torch.autograd.backward(loss)
        start = mark(self._place)
        self._optimizer.step()
        self.steps.append((start, mark(self._place)))
        self._optimizer.zero_grad()


def time_training(
    subject: Subject,
    factories: Mapping[str, Factory],
    batch: int,
    inputs: Tensor | None,
    dtype: torch.dtype | None,
    place: torch.device,
    seconds: float,
    first: Sequence[str],
) -> dict[str, Training]:
    """Times training steps of a copy of the subject's model with each implementation, in turns.

    The loss is the mean square of what the model gives, whatever that is. Where there is not time enough for all
    implementations, those of `first` are timed alone.

    Raises:
        ValueError: it is not known what the model takes, or it gives nothing that can be trained on.
    """
    assert subject.model is not None
    if inputs is None:
        if subject.input_shape is None:
            raise ValueError(f"what {subject.name} takes is not known; give the shape of one input, e.g. 3x224x224")
        generator = torch.Generator(place).manual_seed(0)
        inputs = torch.randn((batch, *subject.input_shape), generator=generator, device=place, dtype=dtype)
    model = copy.deepcopy(subject.model).to(place, dtype).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = None
    inputs = inputs.to(place)
    loops = {name: _Loop(model, make(parameters), inputs, place) for name, make in factories.items()}
    clock, any_loop = clock_for(place), loops[first[0]]
    try:
        any_loop()
    except Exception as error:
        taken = f"inputs of shape {tuple(inputs.shape)}"
        raise ValueError(f"{subject.name} cannot be trained on {taken}: {error}") from error
    if clock(any_loop, 1) * len(loops) * (WARM_UP + _FEWEST) > seconds:
        loops = {name: _Loop(model, factories[name](parameters), inputs, place) for name in first}
    any_loop.steps.clear()
    samples = interleave(loops, clock, _MOST, seconds, _FEWEST)
    times = {}
    for name, sample in samples.items():
        whole = Spread.of(sample.seconds)
        step = Spread.of([between(start, end) for start, end in loops[name].steps[WARM_UP:]])
        times[name] = Training(whole, step, step.median / whole.median)
    return times


def _loss(outputs: Any) -> Tensor:
    losses = [t.float().square().mean() for t in _tensors(outputs) if t.requires_grad]
    if not losses:
        raise ValueError("the model gives nothing that depends on its parameters")
    return torch.stack(losses).sum()


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, Sequence) and not isinstance(outputs, str):
        for value in outputs:
            yield from _tensors(value)
