"""Adam and AdamW."""

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

_PLAIN, _AMSGRAD = _C.RULES["adam"], _C.RULES["adam_amsgrad"]


class _FusedAdam(FusedStep):
    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        beta1, beta2 = group["betas"]
        return _AMSGRAD if group["amsgrad"] else _PLAIN, {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "decoupled": group["decoupled_weight_decay"],
            "maximize": group["maximize"],
        }

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        return "Adam does not support sparse gradients, please consider SparseAdam instead"


class Adam(_FusedAdam, torch.optim.Adam):
    """torch.optim.Adam with a fused step.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, capturable, differentiable, decoupled_weight_decay: as
            in :class:`torch.optim.Adam`.
        foreach, fused: choose only among torch's own implementations, for parameters that fall back to them;
            `fused=True` also leaves unscaling under a :class:`torch.amp.GradScaler` to the step.
        max_grad_norm: clips the norm of all gradients, over all groups, as
            :func:`torch.nn.utils.clip_grad_norm_` before the step would; the gradients themselves stay as they are.
        norm_group: the processes over which each parameter is split, where that cannot be seen: docs/distributed.md.
        **formats: what parameters and states are stored in: :class:`fusedopt.optim.Formats`.
            There are two, with `amsgrad` three.

    Raises:
        ValueError: where torch's class does, and for a negative `max_grad_norm`.
    """

    _torch_class = torch.optim.Adam

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
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
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        self._options(max_grad_norm, norm_group, **formats)


class AdamW(_FusedAdam, torch.optim.AdamW):
    """torch.optim.AdamW with a fused step.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, capturable, differentiable: as in
            :class:`torch.optim.AdamW`.
        foreach, fused: choose only among torch's own implementations, for parameters that fall back to them;
            `fused=True` also leaves unscaling under a :class:`torch.amp.GradScaler` to the step.
        max_grad_norm, norm_group, **formats: as in :class:`Adam`.

    Raises:
        ValueError: where torch's class does, and for a negative `max_grad_norm`.
    """

    _torch_class = torch.optim.AdamW

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
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
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self._options(max_grad_norm, norm_group, **formats)
