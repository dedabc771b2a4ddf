"""Options of a training, beyond its model, optimizer and data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fusedopt.schedulers.gallery import GALLERY
from fusedopt.training.compute import DTYPES


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of `fusedopt.training.train`. The default is the model's own precision and a constant learning rate.

    Attributes:
        accumulate: batches whose gradients are averaged for one optimizer step; the last step of an epoch takes those
            that are left.
        max_grad_norm: clips the norm of all gradients before each step, for optimizers that do not do so themselves:
            fusedopt's have an argument of this name, which saves a pass.
        amp: runs forward passes under `torch.autocast`: "bf16", or "fp16" with a `GradScaler`. Evaluation is in the
            model's own precision.
        channels_last: lays out the weights and the images so that channels are next to each other.
        compile: runs training through `torch.compile`.
        cuda_graph: captures the whole step in a CUDA graph, see `fusedopt.training.graph`.
        onednn: lets oneDNN compute on the CPU, where PyTorch was built with it. False is quicker for batches of a few
            small images.
        ema: decay of an exponential moving average of weights and buffers, which is what is evaluated and handed to
            `on_epoch`; for instance 0.999. At first it is smaller, see `ExponentialAverage`. It is kept beside the
            optimizer, whichever that is; what one keeps by its own `ema_decay` is for its `averaged_weights`.
        schedule: a name in `fusedopt.schedulers.gallery.GALLERY`, for instance "one-cycle": what `fusedopt
            plot-schedule` draws, over all steps, with the optimizer's learning rate as the highest one.
        min_lr: the schedule's lowest learning rate, where it has one; None is a tenth of the highest.
        patience: stops after so many epochs in a row without a better accuracy on the test images; None never does.

    Raises:
        ValueError: a value is out of its range, or a name unknown.
    """

    accumulate: int = 1
    max_grad_norm: float | None = None
    amp: str | None = None
    channels_last: bool = False
    compile: bool = False
    cuda_graph: bool = False
    onednn: bool = True
    ema: float | None = None
    schedule: str | None = None
    min_lr: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise ValueError(f"accumulate must be a whole number, at least 1, not {self.accumulate}")
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf:
            raise ValueError(f"max_grad_norm must be above 0 and finite, not {self.max_grad_norm:g}")
        if self.amp is not None and self.amp not in DTYPES:
            raise ValueError(f"unknown precision {self.amp!r}; choose from {', '.join(DTYPES)}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"the decay of the average must be between 0 and 1, not {self.ema:g}")
        if self.schedule is not None and self.schedule not in GALLERY:
            raise ValueError(f"unknown schedule {self.schedule!r}; choose from {', '.join(GALLERY)}")
        if self.min_lr is not None and self.schedule is None:
            raise ValueError("a lowest learning rate needs a schedule that goes down to it")
        if self.min_lr is not None and not 0 <= self.min_lr < math.inf:
            raise ValueError(f"min_lr must be at least 0 and finite, not {self.min_lr:g}")
        if self.patience is not None and (not isinstance(self.patience, int) or self.patience < 1):
            raise ValueError(f"patience must be a whole number of epochs, at least 1, not {self.patience}")


PLAIN = Settings()
