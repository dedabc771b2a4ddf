"""What `fusedopt train` makes of its options before any data is read: network, optimizer, loss, settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fusedopt.cli.checks import check_fsdp, check_numbers, rate_of
from fusedopt.data import Augmentation, compose
from fusedopt.tasks import Task, find_task
from fusedopt.training import Settings, make_loss, make_optimizer, seeded
from fusedopt.training.distributed import ALONE, choose_device
from fusedopt.training.graph import check_capture


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command, which says what they are."""

    dataset: str
    model_name: str | None
    optimizer: str
    lr: str | None
    momentum: float | None
    weight_decay: float | None
    epochs: int
    batch_size: int
    augment: str
    held_out: float | None
    seed: int
    data_dir: Path | None
    loss: str
    label_smoothing: float
    schedule: str | None
    min_lr: float | None
    max_grad_norm: float | None
    accumulate: int
    ema: float | None
    patience: int | None
    device: str
    amp: str | None
    channels_last: bool
    compile_model: bool
    cuda_graph: bool
    no_onednn: bool
    fsdp: bool
    threads: int
    out: Path | None
    resume: bool
    tensorboard: bool
    record: bool
    deterministic: bool
    no_report: bool
    quiet: bool

    @property
    def ours(self) -> bool:
        """Whether the optimizer is one of this package's."""
        return not self.optimizer.startswith("torch.")

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The names in --augment."""
        return tuple(filter(None, self.augment.split(",")))

    @property
    def tested(self) -> str:
        """Which images the accuracy is taken on."""
        return "test" if self.held_out is None else "held-out"


@dataclass(frozen=True)
class Parts:
    """What trains, and how.

    Attributes:
        options: of the optimizer, all that differ from its defaults.
        flags: how it works, without an effect on the result.
    """

    settings: Settings
    device: torch.device
    task: Task
    model: nn.Module
    augmentation: Augmentation | None
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    options: dict[str, Any]
    flags: dict[str, Any]
    optimizer: Optimizer


def make_parts(o: Options) -> Parts:
    """Makes all that does not depend on the data; raises ValueError where an option is wrong."""
    numbers = {"lr": rate_of(o.lr), "momentum": o.momentum, "weight_decay": o.weight_decay}
    shares = {"held_out": o.held_out, "label_smoothing": o.label_smoothing, "ema": o.ema}
    check_numbers(**numbers, **shares, min_lr=o.min_lr, max_grad_norm=o.max_grad_norm)
    settings = _settings(o)
    check_fsdp(settings, fsdp=o.fsdp)
    device = choose_device(o.device)
    task = find_task(o.dataset)
    model = seeded(lambda: task.network(o.model_name), o.seed).to(device)
    if o.channels_last:  # before the processes agree on how gradients are laid out
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    augmentation = compose(o.augmentations, task.classes) if o.augment else None
    if o.label_smoothing and o.loss != "cross-entropy":
        raise ValueError(f"--label-smoothing belongs to cross-entropy, not to {o.loss}")
    loss_fn = make_loss(o.loss, **({"label_smoothing": o.label_smoothing} if o.label_smoothing else {}))
    options: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    if o.ours and o.max_grad_norm is not None:
        options["max_grad_norm"] = o.max_grad_norm
    flags = {"fused": True} if o.ours and o.amp == "fp16" else {}  # the scale is taken in the step, without waiting
    if o.cuda_graph:
        options["capturable"] = True
        if o.record:
            raise ValueError("--capture cannot look into a CUDA graph; leave out one of them")
    try:
        optimizer = make_optimizer(o.optimizer, model.parameters(), **options, **flags)
    except TypeError as error:  # some of torch's have no capturable
        if not o.cuda_graph:
            raise
        raise ValueError(f"{o.optimizer} cannot be captured in a CUDA graph; take one of fusedopt's") from error
    if o.cuda_graph:  # training would say so too, but only after the download
        check_capture(settings, device, optimizer, ALONE)
    return Parts(settings, device, task, model, augmentation, loss_fn, options, flags, optimizer)


def _settings(o: Options) -> Settings:
    return Settings(
        accumulate=o.accumulate,
        max_grad_norm=None if o.ours else o.max_grad_norm,  # fusedopt's optimizers clip within their step
        amp=o.amp,
        channels_last=o.channels_last,
        compile=o.compile_model,
        cuda_graph=o.cuda_graph,
        onednn=not o.no_onednn,
        ema=o.ema,
        schedule=o.schedule,
        min_lr=o.min_lr,
        patience=o.patience,
    )
