"""SGD with momentum and Nesterov."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusedopt import _C
from fusedopt.optim._fused import FusedStep

_PLAIN, _MOMENTUM = _C.RULES["sgd"], _C.RULES["sgd_momentum"]


class SGD(FusedStep, torch.optim.SGD):
    """torch.optim.SGD with a fused step.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused: as in
            :class:`torch.optim.SGD`. `foreach` and `fused` are validated and stored and choose only among torch's own
            implementations, for parameters that take torch's path.
        capturable: whether the step may be captured in a CUDA graph.
        max_grad_norm: clips the norm of all gradients, over all groups, as
            :func:`torch.nn.utils.clip_grad_norm_` before the step would; the gradients themselves stay as they are.

    Raises:
        ValueError: where torch's class does, and for a negative `max_grad_norm`.
    """

    _torch_class = torch.optim.SGD
    _group_options = ("capturable",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self._options(max_grad_norm, capturable=capturable)

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (
            _MOMENTUM if group["momentum"] != 0 else _PLAIN,
            group["lr"],
            group["momentum"],
            group["dampening"],
            group["nesterov"],
            group["weight_decay"],
            group["maximize"],
        )

    def _needs_count(self, group: dict[str, Any]) -> bool:
        # From a buffer of zeros, the first step is like any other unless the others are dampened.
        return bool(group["momentum"] != 0 and group["dampening"] != 0)

    def _init_states(self, group: dict[str, Any], params: list[Tensor]) -> None:
        # torch's first momentum buffer is a copy of the first gradient. The rule writes it, unread.
        for p in params:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        if group["weight_decay"] != 0:
            return "add(sparse, dense) is not supported. Use add(dense, sparse) instead."
        return None
