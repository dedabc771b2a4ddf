"""Lion and LARS in a few lines, as their papers have them. Nothing of fusedopt is imported."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from reference import Plain
from torch import Tensor


class ReferenceLion(Plain):
    """Algorithm 2 of Chen et al."""

    decoupled = True
    options: ClassVar = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "maximize": False}

    def _update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        m = state.setdefault("exp_avg", torch.zeros_like(w))
        c = (1 - beta1) * g + beta1 * m
        w.mul_(1 - group["lr"] * group["weight_decay"])
        w.sub_(group["lr"] * ((c > 0).to(w.dtype) - (c < 0).to(w.dtype)))
        m.copy_((1 - beta2) * g + beta2 * m)


class ReferenceLARS(Plain):
    """Algorithm 1 of You et al., with Nesterov's momentum and without vectors on request."""

    decoupled = True
    options: ClassVar = {
        "lr": 1.0,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "nesterov": False,
        "trust_coefficient": 1e-3,
        "eps": 0.0,
        "exclude_1d": False,
        "maximize": False,
    }

    def _update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
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
