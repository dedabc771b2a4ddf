"""LARS, a learning rate for each tensor (You et al., https://arxiv.org/abs/1708.03888)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusedopt._extension import _C
from fusedopt.optim._formats import Formats
from fusedopt.optim._fused import FusedStep
from fusedopt.optim._plain import scalar
from fusedopt.optim._processes import refuse_merged
from fusedopt.optim._trust_ratio import TrustRatioOptimizer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_PLAIN, _MOMENTUM = _C.RULES["lars"], _C.RULES["lars_momentum"]
_NUMBERS = ("lr", "momentum", "weight_decay", "trust_coefficient", "eps", "nesterov", "maximize", "exclude_1d")


class _TorchLARS(TrustRatioOptimizer):
    """LARS in plain PyTorch."""

    def __init__(self, params: ParamsT, **defaults: Any) -> None:
        lr = defaults["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        for name in ("momentum", "weight_decay", "trust_coefficient", "eps"):
            if not defaults[name] >= 0.0:
                raise ValueError(f"Invalid {name} value: {defaults[name]}")
        if defaults["nesterov"] and not defaults["momentum"] > 0:
            raise ValueError("Nesterov momentum requires a momentum")
        super().__init__(params, defaults)

    def _init_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in group["params"]:
            if p.grad is None:
                continue
            params.append(p)
            if group["momentum"] != 0 and self.state[p].get("momentum_buffer") is None:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def _adapts(self, group: dict[str, Any]) -> bool:
        return True

    def _direction(
        self, group: dict[str, Any], param: Tensor, grad: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        # Autograd keeps what the parameter was before the step.
        return param.clone() if group["differentiable"] else param, grad

    def _move(
        self, group: dict[str, Any], param: Tensor, grad: Tensor, state: dict[str, Tensor], *norms: Tensor
    ) -> None:
        rate, momentum, decay = scalar(group["lr"]), group["momentum"], group["weight_decay"]
        if not (group["exclude_1d"] and param.dim() <= 1):
            param_norm, grad_norm = norms
            ratio = group["trust_coefficient"] * param_norm / (grad_norm + decay * param_norm + group["eps"])
            rate = rate * ratio.masked_fill((param_norm == 0) | (grad_norm == 0), 1.0)
            if decay != 0:
                grad = grad + decay * param
        step = rate * grad
        if momentum != 0:
            buffer = state["momentum_buffer"].mul_(momentum).add_(step)
            buffer = buffer.clone() if group["differentiable"] else buffer  # autograd keeps what is overwritten next
            step = momentum * buffer + step if group["nesterov"] else buffer
        param.sub_(step)


class LARS(FusedStep, _TorchLARS):
    r"""LARS with a fused step: SGD in which every tensor has a learning rate of its own, for large batches.

    With the gradient g of a tensor w (negated by `maximize`), weight decay :math:`\lambda` and a velocity v that starts
    at 0,

    .. math::
        \rho = \frac{c \lVert w \rVert}{\lVert g \rVert + \lambda \lVert w \rVert + \epsilon}, \qquad
        v \leftarrow \mu v + \eta \rho\, (g + \lambda w), \qquad w \leftarrow w - v

    where :math:`\rho` is 1 if either norm is 0. The learning rate is inside the velocity, as in the paper: a schedule
    does not change the steps that are under way. With `nesterov`, w moves by :math:`\mu v + \eta \rho (g + \lambda w)`.
    The state of a parameter has, with momentum, `momentum_buffer` (shape and dtype of the parameter). There is no step
    count.

    Args:
        params: parameters or groups of them.
        lr: learning rate :math:`\eta`, of the size of 1 to 30 for large batches.
        momentum: :math:`\mu`; 0 for none.
        weight_decay: :math:`\lambda`.
        nesterov: whether the step looks ahead along the velocity.
        trust_coefficient: :math:`c`.
        eps: :math:`\epsilon`; the paper has none.
        exclude_1d: whether parameters of at most one dimension (biases, scales of normalizations) take the plain step
            of SGD, without ratio and without weight decay; an option of each group.
        maximize: whether to ascend.
        capturable: whether the step may be captured in a CUDA graph.
        differentiable: whether autograd sees the step.
        fused: True leaves unscaling under a :class:`torch.amp.GradScaler` to the step, as in torch's fused classes.
        max_grad_norm: clips the norm of all gradients, over all groups, as
            :func:`torch.nn.utils.clip_grad_norm_` before the step would; the gradients themselves stay as they are.
        norm_group: the processes over which each parameter is split, where that cannot be seen: docs/distributed.md.
        **formats: what parameters and states are stored in: :class:`fusedopt.optim.Formats`.
            There is one with momentum, else none.

    Raises:
        ValueError: on a hyper-parameter out of range, and for `exclude_1d` where parameters are pieces of tensors whose
            dimensions cannot be seen.
        RuntimeError: on a sparse gradient, in `step`.

    Source: https://arxiv.org/abs/1708.03888, algorithm 1.
    """

    _torch_class = _TorchLARS
    _own_options = (*FusedStep._own_options, "fused")
    _sum_scope = _C.SCOPES[_PLAIN]

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        trust_coefficient: float = 1e-3,
        eps: float = 0.0,
        exclude_1d: bool = False,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        norm_group: ProcessGroup | None = None,
        **formats: Unpack[Formats],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
            trust_coefficient=trust_coefficient,
            eps=eps,
            exclude_1d=exclude_1d,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
        )
        self._options(max_grad_norm, norm_group, fused=fused, **formats)
        for group in self.param_groups:
            self._check_group(group)

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return _MOMENTUM if group["momentum"] != 0 else _PLAIN, {name: group[name] for name in _NUMBERS}

    def _needs_count(self, group: dict[str, Any]) -> bool:
        return False

    def _sums_tensors(self, group: dict[str, Any]) -> bool:
        return True

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if group.get("exclude_1d") and self._spread is not None and self._spread.pieces:
            raise ValueError(
                "exclude_1d goes by the dimensions of a parameter, and here parameters are pieces of tensors: give "
                "biases and scales an optimizer of their own, or use fully_shard"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's."""
        super().add_param_group(param_group)
        refuse_merged(self, self.param_groups[-1]["params"])

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        return "LARS does not support sparse gradients"
