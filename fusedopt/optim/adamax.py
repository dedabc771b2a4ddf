"""Adamax."""

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

_RULE = _C.RULES["adamax"]


class Adamax(FusedStep, torch.optim.Adamax):
    """torch.optim.Adamax with a fused step, which torch lacks.

    Args:
        params, lr, betas, eps, weight_decay, maximize, differentiable, capturable: as in :class:`torch.optim.Adamax`.
        foreach: chooses only among torch's own implementations, for parameters that fall back to them.
        fused: True leaves unscaling under a :class:`torch.amp.GradScaler` to the step, as in torch's fused classes.
        max_grad_norm: clips the norm of all gradients, over all groups, as
            :func:`torch.nn.utils.clip_grad_norm_` before the step would; the gradients themselves stay as they are.
        norm_group: the processes over which each parameter is split, where that cannot be seen: docs/distributed.md.
        **formats: what parameters and states are stored in: :class:`fusedopt.optim.Formats`. There are two.

    Raises:
        ValueError: where torch's class does, and for a negative `max_grad_norm`.
    """

    _torch_class = torch.optim.Adamax
    _own_options = (*FusedStep._own_options, "fused")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        norm_group: ProcessGroup | None = None,
        **formats: Unpack[Formats],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            foreach,
            maximize=maximize,
            differentiable=differentiable,
            capturable=capturable,
        )
        self._options(max_grad_norm, norm_group, fused=fused, **formats)

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        beta1, beta2 = group["betas"]
        return _RULE, {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        return "Adamax does not support sparse gradients"
