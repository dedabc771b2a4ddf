"""A whole training step as one CUDA graph: the host launches it, and nothing else, per batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedopt.training.batches import Part
from fusedopt.training.distributed import World
from fusedopt.training.settings import Settings
from fusedopt.training.step import Step

Outputs = tuple[Tensor, Tensor]

_WARM_UP = 3  # as many as torch's documentation takes


def check_capture(settings: Settings, device: torch.device, optimizer: Optimizer, world: World) -> None:
    """Refuses what a captured step cannot do.

    Raises:
        ValueError: with the reason.
    """
    reasons = {
        f"runs on a GPU, not on {device.type}": device.type != "cuda",
        "needs an optimizer made with capturable=True": not all(g.get("capturable") for g in optimizer.param_groups),
        "takes one batch per step: leave out accumulate": settings.accumulate != 1,
        "has no gradient scale: take bf16 instead of fp16": settings.amp == "fp16",
        "and torch.compile: choose one of them": settings.compile,
        "trains in one process, not under torchrun": world.size > 1,
        "runs no hooks of the optimizer: remove them": bool(
            optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        ),
    }
    for reason, refused in reasons.items():
        if refused:
            raise ValueError(f"a CUDA graph {reason}")


class GraphedStep:
    """A step that is captured once and then replayed, with the batch copied to where the graph reads it.

    The first few batches are trained on eagerly, on a stream of their own, so that everything that is set up once is
    set up before the capture. Batches of another shape, such as the last one of an epoch, are trained on eagerly too.

    Args:
        step: without a stopwatch, as there is no time to take within a graph. Its optimizer is capturable.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._seen = 0
        self._replay: Callable[[], object] | None = None
        self._batch: tuple[Tensor, Tensor] | None = None
        self._outputs: tuple[Tensor, Tensor] | None = None

    def __call__(self, images: Tensor, targets: Tensor, part: Part) -> Outputs:
        """As `Step`; after the capture what is returned is overwritten by the next batch."""
        with torch.cuda.device_of(images):  # type: ignore[no-untyped-call]
            return self._train(images, targets, part)

    def _train(self, images: Tensor, targets: Tensor, part: Part) -> Outputs:
        batch = images, targets
        if self._batch is None:
            self._batch = images.clone(), targets.clone()
        if any(
            fixed.shape != new.shape or fixed.dtype != new.dtype for fixed, new in zip(self._batch, batch, strict=True)
        ):
            return self._step(images, targets, part)
        self._seen += 1
        if self._seen <= _WARM_UP:
            return on_side_stream(lambda: self._step(images, targets, part))
        for fixed, new in zip(self._batch, batch, strict=True):
            fixed.copy_(new)
        if self._replay is None or self._outputs is None:
            fixed_images, fixed_targets = self._batch
            self._step.optimizer.zero_grad(set_to_none=True)  # the backward pass makes gradients in the graph's memory
            self._replay, self._outputs = capture(lambda: self._step(fixed_images, fixed_targets, part))
        self._replay()
        return self._outputs


def on_side_stream(run: Callable[[], Outputs]) -> Outputs:
    """Runs something on a stream of its own, between what was launched before and what comes after."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        outputs = run()
    torch.cuda.current_stream().wait_stream(side)
    return outputs


def capture(run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
    """Captures something without running it; returns what runs it, and what it writes its outputs to."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph.replay, outputs
