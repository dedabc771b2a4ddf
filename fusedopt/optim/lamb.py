"""LAMB, layer-wise adaptive moments for large batches (You et al., https://arxiv.org/abs/1904.00962)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, _get_scalar_dtype

from fusedopt._extension import _C
from fusedopt.optim._formats import Formats
from fusedopt.optim._fused import FusedStep
from fusedopt.optim._plain import check_numbers, number, scalar
from fusedopt.optim._processes import refuse_merged
from fusedopt.optim._trust_ratio import TrustRatioOptimizer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_RULE = _C.RULES["lamb"]
_ANY_NORM = 0.0, math.inf


class _TorchLAMB(TrustRatioOptimizer):
    """LAMB in plain PyTorch."""

    def __init__(self, params: ParamsT, **defaults: Any) -> None:
        check_numbers(defaults)
        if (clip := defaults["trust_clip"]) is not None and not clip > 0:
            raise ValueError(f"Invalid trust_clip: {clip}; it must be None or above 0")
        if (phi := defaults["phi"]) is not None and not 0 <= phi[0] <= phi[1]:
            raise ValueError(f"Invalid phi: {phi}; it must be None or bounds (low, high) with 0 <= low <= high")
        super().__init__(params, defaults)

    def _init_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in group["params"]:
            if p.grad is None:
                continue
            params.append(p)
            state = self.state[p]
            if len(state) == 0:
                device = p.device if group["capturable"] else "cpu"
                state["step"] = torch.zeros((), dtype=_get_scalar_dtype(), device=device)
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def _adapts(self, group: dict[str, Any]) -> bool:
        return bool(group["weight_decay"] != 0 or group["always_adapt"])

    def _direction(
        self, group: dict[str, Any], param: Tensor, grad: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The weight before the step, and what is subtracted from it but for the step size; updates the moments."""
        beta1, beta2 = map(scalar, group["betas"])
        decay, decoupled = group["weight_decay"], group["decoupled_weight_decay"]
        weight = param.clone() if group["differentiable"] else param  # autograd keeps what it was before the step
        if decay != 0 and not decoupled:
            grad = grad + decay * weight
        state["step"] += 1
        state["exp_avg"].mul_(beta1).add_(grad, alpha=1 - beta1 if group["grad_averaging"] else 1)  # type: ignore[arg-type]
        state["exp_avg_sq"].mul_(beta2).add_(grad * grad.conj() * (1 - beta2))

        mean, square = state["exp_avg"], state["exp_avg_sq"]
        if group["differentiable"]:
            mean, square = mean.clone(), square.clone()
        if group["bias_correction"]:
            step = state["step"] if group["capturable"] or group["differentiable"] else number(state["step"])
            mean = mean * (1 / (1 - beta1**step))
            square = square / (1 - beta2**step)
        update: Tensor = mean / (square.sqrt() + group["eps"])
        if decay != 0 and decoupled:
            update = update + decay * weight
        return weight, update

    def _move(
        self, group: dict[str, Any], param: Tensor, update: Tensor, state: dict[str, Tensor], *norms: Tensor
    ) -> None:
        trust_ratio: Tensor | float = 1.0
        if self._adapts(group):
            param_norm, update_norm = norms
            if group["phi"] is not None:
                param_norm = param_norm.clamp(*group["phi"])
            ratio = (param_norm / update_norm).masked_fill((param_norm == 0) | (update_norm == 0), 1.0)
            trust_ratio = ratio if group["trust_clip"] is None else ratio.clamp(max=group["trust_clip"])
        param.sub_((scalar(group["lr"]) * trust_ratio * update).to(param.dtype))


class LAMB(FusedStep, _TorchLAMB):
    r"""LAMB with a fused step: the algorithm of apex's FusedLAMB, with options.

    With gradient g clipped to `max_grad_norm` over all groups, moments m and v as Adam's, and

    .. math:: u = \frac{\hat m}{\sqrt{\hat v} + \epsilon} + \lambda w, \qquad
              w \leftarrow w - \eta\, \frac{\phi(\lVert w \rVert)}{\lVert u \rVert}\, u

    where the ratio, taken per tensor, is 1 if either norm is 0. The state of a parameter has `step` (float32 scalar),
    `exp_avg` and `exp_avg_sq` (shape and dtype of the parameter).

    Args:
        params: parameters or groups of them.
        lr: learning rate :math:`\eta`.
        betas: decay of the two moments.
        eps: added outside the square root.
        weight_decay: :math:`\lambda`.
        bias_correction: whether the moments are corrected for their start at zero.
        grad_averaging: whether the gradient enters the first moment times (1 - beta1), or whole.
        decoupled_weight_decay: whether the decay is part of the update, or of the gradient (L2).
        max_grad_norm: norm to which the gradients of all groups together are clipped (g * max / norm, without an
            epsilon); None not to clip.
        always_adapt: whether groups without weight decay have a trust ratio too (NVLAMB); otherwise theirs is 1.
        trust_clip: upper bound of the trust ratio.
        phi: bounds (low, high) of the parameter norm, the paper's :math:`\phi`.
        maximize: whether to ascend.
        capturable: whether the step may be captured in a CUDA graph.
        differentiable: whether autograd sees the step.
        norm_group: the processes over which each parameter is split, where that cannot be seen: docs/distributed.md.
        **formats: what parameters and states are stored in: :class:`fusedopt.optim.Formats`. There are two.
        fused: True leaves unscaling under a :class:`torch.amp.GradScaler` to the step, as in torch's fused classes.

    Raises:
        ValueError: on a hyper-parameter out of range.

    Source: https://arxiv.org/abs/1904.00962, https://github.com/NVIDIA/apex (csrc/multi_tensor_lamb.cu).
    """

    _torch_class = _TorchLAMB
    _own_options = (*FusedStep._own_options, "fused")
    _clip_epsilon = 0.0  # apex's
    _sum_scope = _C.SCOPES[_RULE]

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool = True,
        grad_averaging: bool = True,
        decoupled_weight_decay: bool = True,
        max_grad_norm: float | None = 1.0,
        always_adapt: bool = False,
        trust_clip: float | None = None,
        phi: tuple[float, float] | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        norm_group: ProcessGroup | None = None,
        **formats: Unpack[Formats],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            bias_correction=bias_correction,
            grad_averaging=grad_averaging,
            decoupled_weight_decay=decoupled_weight_decay,
            always_adapt=always_adapt,
            trust_clip=trust_clip,
            phi=phi,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
        )
        self._options(max_grad_norm, norm_group, fused=fused, **formats)

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        beta1, beta2 = group["betas"]
        low, high = _ANY_NORM if group["phi"] is None else group["phi"]
        trust_clip = group["trust_clip"]
        return _RULE, {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "decoupled": group["decoupled_weight_decay"],
            "maximize": group["maximize"],
            "bias_correction": group["bias_correction"],
            "grad_averaging": group["grad_averaging"],
            "always_adapt": group["always_adapt"],
            "trust_clip": math.inf if trust_clip is None else trust_clip,
            "phi_low": low,
            "phi_high": high,
        }

    def _sums_tensors(self, group: dict[str, Any]) -> bool:
        return self._adapts(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's."""
        super().add_param_group(param_group)
        if self._adapts(group := self.param_groups[-1]):
            refuse_merged(self, group["params"])

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        return "LAMB does not support sparse gradients"
