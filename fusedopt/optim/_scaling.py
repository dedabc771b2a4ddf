"""What a step multiplies the gradients by: GradScaler's scale and the clip coefficient, on the host or on GPUs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusedopt._extension import _C
from fusedopt.optim._base import Base
from fusedopt.optim._shards import params_of
from fusedopt.optim._torch import square_sum

Scalings = dict[int, tuple[Tensor | None, Tensor | None, Tensor | None]]
"""By device what its kernels read there: `grad_scale`, `found_inf`, and the sum of squares for clipping."""


class Scaling:
    """What GradScaler sets around a step: `grad_scale` and `found_inf`; None or 0 where there is nothing to do."""

    def __init__(self, grad_scale: Tensor | float | None, found_inf: Tensor | float | None) -> None:
        self.grad_scale, self.found_inf = grad_scale, found_inf
        self.on_gpu = any(isinstance(t, Tensor) and t.device.type == _C.GPU for t in (grad_scale, found_inf))
        """Then only a kernel can read them without making the host wait."""

    def overflowed(self) -> bool:
        """Whether the step must not happen. Waits for a GPU."""
        return self.found_inf is not None and bool(float(self.found_inf))

    def factor(self) -> float:
        """What unscales the gradients. Waits for a GPU."""
        return 1.0 if self.grad_scale is None else 1.0 / float(self.grad_scale)

    def there(self, device: int) -> tuple[Tensor | None, Tensor | None]:
        """`grad_scale` and `found_inf` on the GPU of that number."""
        return _there(self.grad_scale, device), _there(self.found_inf, device)


NO_SCALING = Scaling(None, None)


def _there(value: Tensor | float | None, device: int) -> Tensor | None:
    if not isinstance(value, Tensor):
        return None
    assert _C.GPU is not None
    return value if value.device.index in (device, None) else value.to(torch.device(_C.GPU, device))


def gradient_scale(
    optimizer: Base, devices: list[int], leftover: list[int], scaling: Scaling
) -> tuple[float, Scalings]:
    """The factor of all gradients: a number, and what kernels read for themselves.

    With clipping, it takes the norm over all groups and devices, and keeps it. Where all parameters are on the fused
    path of GPUs, the host waits for nothing.
    """
    max_norm = optimizer.defaults["max_grad_norm"]
    if devices and devices[0] >= 0 and not leftover:
        scale = 1.0 if scaling.on_gpu else scaling.factor()
        return scale, _read_on_gpus(optimizer, devices, scale, scaling)
    scale = scaling.factor()
    if max_norm is None:
        return scale, {}
    params = params_of(optimizer) if leftover else []
    total = sum(square_sum(grad) for i in leftover if (grad := params[i].grad) is not None)
    if (plan := optimizer._plan) is not None:
        for device in devices:
            total += plan.square_sum() if device < 0 else float(plan.norm(device, 1.0, None)[0])
    if optimizer._spread is not None:
        total = float(_over_processes(optimizer, torch.tensor(total, dtype=torch.float64, device="cpu")))
    norm = math.sqrt(total) * abs(scale)
    optimizer._grad_norm = norm
    return scale * _C.clip_coefficient(norm, max_norm, optimizer._clip_epsilon), {}


def _read_on_gpus(optimizer: Base, gpus: list[int], scale: float, scaling: Scaling) -> Scalings:
    clips = optimizer.defaults["max_grad_norm"] is not None
    if not clips and not scaling.on_gpu:
        return {}
    there = {gpu: scaling.there(gpu) for gpu in gpus}
    if not clips:
        return {gpu: (*there[gpu], None) for gpu in gpus}
    assert optimizer._plan is not None
    measured = {gpu: optimizer._plan.norm(gpu, scale, there[gpu][0]) for gpu in gpus}
    total, norm = measured[gpus[0]]
    if len(gpus) > 1 or optimizer._spread is not None:
        total = torch.stack([square_sum.to(total.device) for square_sum, _ in measured.values()]).sum()
        if optimizer._spread is not None:
            total = _over_processes(optimizer, total)
        grad_scale = there[gpus[0]][0]
        norm = total.sqrt() * scale / (1.0 if grad_scale is None else grad_scale)
    optimizer._grad_norm = norm
    return {gpu: (*there[gpu], total.to(norm_there.device)) for gpu, (_, norm_there) in measured.items()}


def _over_processes(optimizer: Base, total: Tensor) -> Tensor:
    """The sum of squares of the gradients of all processes, from that of this one's."""
    spread = optimizer._spread
    assert spread is not None
    once = sum(square_sum(p.grad) for p in params_of(optimizer) if id(p) in spread.everywhere and p.grad is not None)
    return spread.reduce(total - once) + once
