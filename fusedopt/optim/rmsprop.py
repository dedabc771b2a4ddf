"""RMSprop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusedopt._extension import _C
from fusedopt.optim._formats import Formats
from fusedopt.optim._fused import FusedStep

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_PLAIN, _MOMENTUM = _C.RULES["rmsprop"], _C.RULES["rmsprop_momentum"]
_CENTERED, _CENTERED_MOMENTUM = _C.RULES["rmsprop_centered"], _C.RULES["rmsprop_centered_momentum"]


class RMSprop(FusedStep, torch.optim.RMSprop):
    """torch.optim.RMSprop with a fused step, which torch lacks.

    Args:
        params, lr, alpha, eps, weight_decay, momentum, centered, capturable, maximize, differentiable: as in
            :class:`torch.optim.RMSprop`.
        foreach: chooses only among torch's own implementations, for parameters that fall back to them.
        fused: True leaves unscaling under a :class:`torch.amp.GradScaler` to the step, as in torch's fused classes.
        max_grad_norm: clips the norm of all gradients, over all groups, as
            :func:`torch.nn.utils.clip_grad_norm_` before the step would; the gradients themselves stay as they are.
        norm_group: the processes over which each parameter is split, where that cannot be seen: docs/distributed.md.
        **formats: what parameters and states are stored in: :class:`fusedopt.optim.Formats`.
            There is one, with momentum and centered one more each.

    Raises:
        ValueError: where torch's class does, and for a negative `max_grad_norm`.
    """

    _torch_class = torch.optim.RMSprop
    _own_options = (*FusedStep._own_options, "fused")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        norm_group: ProcessGroup | None = None,
        **formats: Unpack[Formats],
    ) -> None:
        super().__init__(
            params,
            lr,
            alpha,
            eps,
            weight_decay,
            momentum,
            centered,
            capturable,
            foreach,
            maximize,
            differentiable,
        )
        self._options(max_grad_norm, norm_group, fused=fused, **formats)

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        momentum = group["momentum"]
        plain, with_momentum = (_CENTERED, _CENTERED_MOMENTUM) if group["centered"] else (_PLAIN, _MOMENTUM)
        return with_momentum if momentum > 0 else plain, {
            "lr": group["lr"],
            "alpha": group["alpha"],
            "eps": group["eps"],
            "momentum": momentum,
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        return "RMSprop does not support sparse gradients"
