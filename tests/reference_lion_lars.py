"""Lion and LARS in a few lines, as their papers have them. Nothing of fusedopt is imported."""

from __future__ import annotations

from typing import Any

import torch
from reference import _Plain
from torch import Tensor
from torch.optim import Optimizer


class ReferenceLion(_Plain):
    """Algorithm 2 of Chen et al."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        options = locals()
        super().__init__(params, {k: v for k, v in options.items() if k not in ("self", "params", "__class__")})

    def _update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        g = -w.grad if group["maximize"] else w.grad  # type: ignore[operator,assignment]
        beta1, beta2 = group["betas"]
        m = state.setdefault("exp_avg", torch.zeros_like(w))
        c = (1 - beta1) * g + beta1 * m
        w.mul_(1 - group["lr"] * group["weight_decay"])
        w.sub_(group["lr"] * ((c > 0).to(w.dtype) - (c < 0).to(w.dtype)))
        m.copy_((1 - beta2) * g + beta2 * m)


class ReferenceLARS(_Plain):
    """Algorithm 1 of You et al., with Nesterov's momentum and without vectors on request."""

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        trust_coefficient: float = 1e-3,
        eps: float = 0.0,
        exclude_1d: bool = False,
        maximize: bool = False,
    ) -> None:
        options = locals()
        super().__init__(params, {k: v for k, v in options.items() if k not in ("self", "params", "__class__")})

    def _update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        g = -w.grad if group["maximize"] else w.grad  # type: ignore[operator,assignment]
        lr, decay = group["lr"], group["weight_decay"]
        if not group["exclude_1d"] or w.dim() > 1:
            norms = [float((t.double() ** 2).sum()) ** 0.5 for t in (w, g)]
            if all(norms):
                lr *= group["trust_coefficient"] * norms[0] / (norms[1] + decay * norms[0] + group["eps"])
            g = g + decay * w
        if group["momentum"] == 0:
            w.sub_(lr * g)
            return
        v = state.setdefault("momentum_buffer", torch.zeros_like(w))
        v.copy_(group["momentum"] * v + lr * g)
        w.sub_(group["momentum"] * v + lr * g if group["nesterov"] else v)


REFERENCES: dict[str, type[Optimizer]] = {"Lion": ReferenceLion, "LARS": ReferenceLARS}
"""By the name of our class."""
