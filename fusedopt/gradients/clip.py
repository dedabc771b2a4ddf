"""Clipping of gradients by value and by norm, as `torch.nn.utils` has it, in fewer passes over memory where we can.

To clip inside the optimizer's step, without writing the gradients at all, give `max_grad_norm` to the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_ as torch_clip_grad_norm_
from torch.nn.utils import clip_grad_value_

from fusedopt._extension import _C

__all__ = ["clip_grad_norm_", "clip_grad_value_"]

# Plain SGD: the rule that reads nothing but the gradient, and needs no state. Only its norm is asked for.
_GRADIENT_ONLY = (
    _C.RULES["sgd"],
    dict.fromkeys(("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize", "classic"), 0.0),
)


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales the gradients in place by min(1, max_norm / (norm + 1e-6)), where norm is taken over all of them together.

    As `torch.nn.utils.clip_grad_norm_`, with two differences for dense gradients on the CPU and the 2-norm: the norm is
    one pass over all gradients, accumulated in float64; and gradients that need no clipping are not written, where
    torch multiplies them by 1. Everything else is torch's function.

    Args:
        parameters: tensors whose `.grad` is clipped; those without one are passed over.
        max_norm: the norm that the gradients have at most afterwards.
        norm_type: of the norm, "inf" included.
        error_if_nonfinite: raise rather than scale by a norm that is NaN or infinite.
        foreach: as torch's; True or False uses torch's function.

    Returns:
        The norm before clipping, a scalar of the gradients' dtype on their device.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set. The gradients are as they were.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    on_cpu = gradients and all(gradient.is_cpu for gradient in gradients)
    norm = _norm_in_one_pass(parameters) if on_cpu and float(norm_type) == 2.0 and foreach is None else None
    if norm is None or (error_if_nonfinite and not math.isfinite(norm)):
        return torch_clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    coefficient = float(max_norm) / (norm + 1e-6)
    if not coefficient >= 1:  # NaN too
        torch._foreach_mul_(gradients, coefficient)
    return torch.tensor(norm, dtype=reduce(torch.promote_types, {gradient.dtype for gradient in gradients}))


def _norm_in_one_pass(parameters: list[Tensor]) -> float | None:
    """The 2-norm of all gradients, None where one of them is not for the fused path."""
    plan = _C.Plan()
    leftover, _, _, _ = plan.refresh([{"params": parameters}], {}, [_GRADIENT_ONLY], [False], True, True)
    return None if leftover or plan.sharded or plan.devices != [-1] else math.sqrt(plan.square_sum())
