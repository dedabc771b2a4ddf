"""Lion: steps by the sign of an interpolated momentum (Chen et al., https://arxiv.org/abs/2302.06675)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusedopt._extension import _C
from fusedopt.optim._formats import Formats
from fusedopt.optim._fused import FusedStep
from fusedopt.optim._plain import PlainOptimizer, real, scalar

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_RULE = _C.RULES["lion"]


class _TorchLion(PlainOptimizer):
    """Lion in plain PyTorch."""

    def __init__(self, params: ParamsT, **defaults: Any) -> None:
        lr, betas, weight_decay = defaults["lr"], defaults["betas"], defaults["weight_decay"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        for i, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        super().__init__(params, defaults)

    def _init_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in group["params"]:
            if p.grad is None:
                continue
            params.append(p)
            state = self.state[p]
            if len(state) == 0:
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def _update(self, group: dict[str, Any], param: Tensor, grad: Tensor) -> None:
        param, grad, mean = real(param), real(grad), real(self.state[param]["exp_avg"])
        beta1, beta2 = map(scalar, group["betas"])
        lr = scalar(group["lr"])
        direction = (mean * beta1 + grad * (1 - beta1)).sign()
        if group["weight_decay"] != 0:
            param.mul_(1 - lr * group["weight_decay"])
        param.sub_(lr * direction)
        mean.mul_(beta2).add_(grad * (1 - beta2))


class Lion(FusedStep, _TorchLion):
    r"""Lion with a fused step: one state, and a step of the same length for every weight.

    With the gradient g (negated by `maximize`) and the momentum m, which starts at 0,

    .. math:: w \leftarrow w - \eta\, (\operatorname{sign}(\beta_1 m + (1 - \beta_1) g) + \lambda w), \qquad
              m \leftarrow \beta_2 m + (1 - \beta_2) g.

    The paper takes a learning rate 3 to 10 times smaller than AdamW's, and a weight decay as many times larger. The
    sign of 0 and of NaN is 0, as in torch.sign. The state of a parameter has `exp_avg` (shape and dtype of the
    parameter). There is no step count.

    Args:
        params: parameters or groups of them; real and imaginary parts of a complex one have a sign each.
        lr: learning rate :math:`\eta`.
        betas: :math:`\beta_1` of the direction and :math:`\beta_2` of the momentum, each in [0, 1).
        weight_decay: :math:`\lambda`, decoupled from the gradient and multiplied by the learning rate.
        maximize: whether to ascend.
        capturable: whether the step may be captured in a CUDA graph.
        differentiable: whether autograd sees the step; the sign is a constant to it.
        fused: True leaves unscaling under a :class:`torch.amp.GradScaler` to the step, as in torch's fused classes.
        max_grad_norm: clips the norm of all gradients, over all groups, as
            :func:`torch.nn.utils.clip_grad_norm_` before the step would; the gradients themselves stay as they are.
        norm_group: the processes over which each parameter is split, where that cannot be seen: docs/distributed.md.
        **formats: what parameters and states are stored in: :class:`fusedopt.optim.Formats`. There is one.

    Raises:
        ValueError: on a hyper-parameter out of range.
        RuntimeError: on a sparse gradient, in `step`.

    Source: https://arxiv.org/abs/2302.06675, algorithm 2.
    """

    _torch_class = _TorchLion
    _own_options = (*FusedStep._own_options, "fused")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
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
            betas=betas,
            weight_decay=weight_decay,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
        )
        self._options(max_grad_norm, norm_group, fused=fused, **formats)

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        beta1, beta2 = group["betas"]
        return _RULE, {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }

    def _needs_count(self, group: dict[str, Any]) -> bool:
        return False

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        return "Lion does not support sparse gradients"
