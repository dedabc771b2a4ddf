"""What our own classes are in plain PyTorch: to be read, and to step what the fused path does not take."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, _use_grad_for_differentiable


class PlainOptimizer(Optimizer):
    """An optimizer in plain PyTorch, to be read, and to step what the fused path does not take.

    A subclass adds `_update`, and `_init_group` where there is a state to be made.
    """

    def _init_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Adds the parameters with a gradient to `params`, with a state."""
        params.extend(p for p in group["params"] if p.grad is not None)

    def _update(self, group: dict[str, Any], param: Tensor, grad: Tensor) -> None:
        """Updates one parameter by a gradient that descends."""
        raise NotImplementedError

    def _update_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            assert p.grad is not None
            self._update(group, p, -p.grad if group["maximize"] else p.grad)

    @_use_grad_for_differentiable
    def step(self, closure: Any = None) -> Any:
        """Performs one step, without clipping."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            check_size(group)
        for group in self.param_groups:
            params: list[Tensor] = []
            self._init_group(group, params)
            self._update_group(group, params)
        return loss


def check_numbers(defaults: dict[str, Any]) -> None:
    """Raises what torch.optim.Adam raises for a number that is out of range."""
    lr, eps, weight_decay = defaults["lr"], defaults["eps"], defaults["weight_decay"]
    beta1, beta2 = defaults["betas"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not eps >= 0.0:
        raise ValueError(f"Invalid epsilon value: {eps}")
    if not 0.0 <= beta1 < 1.0:
        raise ValueError(f"Invalid beta parameter at index 0: {beta1}")
    if not 0.0 <= beta2 < 1.0:
        raise ValueError(f"Invalid beta parameter at index 1: {beta2}")
    if not weight_decay >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {weight_decay}")


def check_size(group: dict[str, Any]) -> None:
    """Raises what torch's operators raise for a finite number that the compute type of a parameter does not hold."""
    exact = all(p.dtype in (torch.float64, torch.complex128) for p in group["params"] if p.grad is not None)
    largest = torch.finfo(torch.float64 if exact else torch.float32).max
    for name, value in group.items():
        for number in value if isinstance(value, (tuple, list)) and name != "params" else [value]:
            if isinstance(number, Tensor) and number.numel() == 1 and number.device.type == "cpu":
                number = number.item()
            if isinstance(number, (int, float)) and largest < abs(number) < math.inf:
                raise RuntimeError(f"{name}={value} cannot be converted to type float without overflow")


def scalar(number: float | Tensor) -> float | Tensor:
    """A hyper-parameter, without dimensions where it is a tensor of one element."""
    return number.reshape(()) if isinstance(number, Tensor) else number


def real(t: Tensor) -> Tensor:
    """A complex weight is two real ones."""
    return torch.view_as_real(t) if t.is_complex() else t


def number(t: Tensor) -> float:
    """The value of a scalar; NaN for a fake tensor, which has none and whose results nobody sees."""
    fake = sys.modules.get("torch._subclasses.fake_tensor")
    return math.nan if fake is not None and fake.is_fake(t) else float(t)
