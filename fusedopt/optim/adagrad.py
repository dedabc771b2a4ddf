"""Adagrad."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusedopt._extension import _C
from fusedopt.optim._codecs import tensors_in
from fusedopt.optim._formats import Formats
from fusedopt.optim._fused import FusedStep

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_RULE = _C.RULES["adagrad"]


class Adagrad(FusedStep, torch.optim.Adagrad):
    """torch.optim.Adagrad with a fused step.

    Args:
        params, lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize, differentiable: as in
            :class:`torch.optim.Adagrad`.
        foreach, fused: choose only among torch's own implementations, for parameters that fall back to them;
            `fused=True` also leaves unscaling under a :class:`torch.amp.GradScaler` to the step.
        capturable: whether the step may be captured in a CUDA graph.
        max_grad_norm: clips the norm of all gradients, over all groups, as
            :func:`torch.nn.utils.clip_grad_norm_` before the step would; the gradients themselves stay as they are.
        norm_group: the processes over which each parameter is split, where that cannot be seen: docs/distributed.md.
        **formats: what parameters and states are stored in: :class:`fusedopt.optim.Formats`. There is one state.

    Raises:
        ValueError: where torch's class does, and for a negative `max_grad_norm`.
    """

    _torch_class = torch.optim.Adagrad
    _group_options: ClassVar[dict[str, Any]] = {**FusedStep._group_options, "capturable": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        max_grad_norm: float | None = None,
        norm_group: ProcessGroup | None = None,
        **formats: Unpack[Formats],
    ) -> None:
        super().__init__(
            params,
            lr,
            lr_decay,
            weight_decay,
            initial_accumulator_value,
            eps,
            foreach,
            maximize=maximize,
            differentiable=differentiable,
            fused=fused,
        )
        self._options(max_grad_norm, norm_group, capturable=capturable, **formats)

    def share_memory(self) -> None:
        """As torch's, of states in any format and of what else is kept beside them."""
        for group in self.param_groups:
            for p in group["params"]:
                for name, value in self.state[p].items():
                    for part in tensors_in(value) if name != "step" else ():
                        part.share_memory_()  # type: ignore[no-untyped-call]

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return _RULE, {name: group[name] for name in ("lr", "lr_decay", "eps", "weight_decay", "maximize")}

    def _first_values(self, group: dict[str, Any]) -> dict[str, float]:
        return {"sum": group["initial_accumulator_value"]}

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        if group["weight_decay"] != 0:
            return "weight_decay option is not compatible with sparse gradients"
        return None
