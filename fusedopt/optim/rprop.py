"""Rprop, resilient backpropagation."""

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

_RULE = _C.RULES["rprop"]


class Rprop(FusedStep, torch.optim.Rprop):
    """torch.optim.Rprop with a fused step, which torch lacks.

    Args:
        params, lr, etas, step_sizes, capturable, maximize, differentiable: as in :class:`torch.optim.Rprop`.
        foreach: chooses only among torch's own implementations, for parameters that fall back to them.
        fused: True leaves unscaling under a :class:`torch.amp.GradScaler` to the step, as in torch's fused classes.
        max_grad_norm: clips the norm of all gradients, over all groups, as
            :func:`torch.nn.utils.clip_grad_norm_` before the step would; the gradients themselves stay as they are.
        norm_group: the processes over which each parameter is split, where that cannot be seen: docs/distributed.md.
        **formats: what parameters and states are stored in: :class:`fusedopt.optim.Formats`. There are two.

    Raises:
        ValueError: where torch's class does, and for a negative `max_grad_norm`.
    """

    _torch_class = torch.optim.Rprop
    _own_options = (*FusedStep._own_options, "fused")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        norm_group: ProcessGroup | None = None,
        **formats: Unpack[Formats],
    ) -> None:
        super().__init__(
            params,
            lr,
            etas,
            step_sizes,
            capturable=capturable,
            foreach=foreach,
            maximize=maximize,
            differentiable=differentiable,
        )
        self._options(max_grad_norm, norm_group, fused=fused, **formats)

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        (eta1, eta2), (smallest, largest) = group["etas"], group["step_sizes"]
        return _RULE, {
            "lr": group["lr"],
            "eta1": eta1,
            "eta2": eta2,
            "step_size1": smallest,
            "step_size2": largest,
            "maximize": group["maximize"],
        }

    def _init_states(self, group: dict[str, Any], params: list[Tensor]) -> None:
        super()._init_states(group, params)
        for p in params:  # torch gives the step sizes dtype and layout of the gradient
            state = self.state[p]
            if not p.is_complex():
                state["step_size"] = torch.full_like(p, float(group["lr"]), dtype=state["step_size"].dtype)

    def _first_values(self, group: dict[str, Any]) -> dict[str, float]:
        return {"step_size": float(group["lr"])}

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        return "Rprop does not support sparse gradients"
