"""Delta-bar-delta: SGD with a gain for each weight (Jacobs, Neural Networks 1 (1988), 295-307)."""

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

_PLAIN, _MOMENTUM = _C.RULES["delta_bar_delta"], _C.RULES["delta_bar_delta_momentum"]


class _TorchDeltaBarDelta(PlainOptimizer):
    """Delta-bar-delta in plain PyTorch."""

    def __init__(self, params: ParamsT, **defaults: Any) -> None:
        lr, beta, momentum = defaults["lr"], defaults["beta"], defaults["momentum"]
        low, high, weight_decay = defaults["min_gain"], defaults["max_gain"], defaults["weight_decay"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta value: {beta}; it must be at least 0 and below 1")
        if not momentum >= 0.0:
            raise ValueError(f"Invalid momentum value: {momentum}")
        if not 0.0 <= low <= 1.0 <= high:
            raise ValueError(f"Invalid min_gain and max_gain: {low}, {high}; gains start at 1, which must lie between")
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
                state["gain"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                real(state["gain"]).fill_(1.0)
                state["grad_sign"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            for name in ("gain", "grad_sign"):
                if name not in state:
                    raise KeyError(name)
            if group["momentum"] != 0 and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def _update(self, group: dict[str, Any], param: Tensor, grad: Tensor) -> None:
        state = {name: real(value) for name, value in self.state[param].items() if isinstance(value, Tensor)}
        _update(group, real(param), real(grad), state)


def _update(group: dict[str, Any], param: Tensor, grad: Tensor, state: dict[str, Tensor]) -> None:
    gain, beta = state["gain"], group["beta"]
    if group["weight_decay"] != 0:
        grad = grad + group["weight_decay"] * param
    sign = (grad.detach() > 0).to(gain.dtype) - (grad.detach() < 0).to(gain.dtype)
    agreement = sign * state["grad_sign"]  # 0, which leaves the gain alone, where either is, so in the first step too
    state["grad_sign"].copy_(sign)
    gain.copy_(torch.where(agreement > 0, gain + beta, torch.where(agreement < 0, gain * (1 - beta), gain)))
    gain.clamp_(group["min_gain"], group["max_gain"])

    # Autograd keeps copies: what is kept in the state is overwritten in the next step.
    direction = (gain.clone() if group["differentiable"] else gain) * grad
    if group["momentum"] != 0:
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(direction)
        direction = buffer.clone() if group["differentiable"] else buffer
    param.sub_(scalar(group["lr"]) * direction)


class DeltaBarDelta(FusedStep, _TorchDeltaBarDelta):
    r"""SGD in which every weight has a gain of its own on the learning rate, with a fused step.

    With the gradient g (negated by `maximize`, with `weight_decay` times the parameter added) and, for each weight, a
    gain :math:`\gamma` that starts at 1,

    .. math::
        \gamma_t = \begin{cases}
            \gamma_{t-1} + \beta    & \text{if } g_t g_{t-1} > 0 \\
            \gamma_{t-1} (1 - \beta) & \text{if } g_t g_{t-1} < 0 \\
            \gamma_{t-1}            & \text{otherwise}
        \end{cases}
        \qquad v \leftarrow \mu v + \gamma_t g_t, \qquad w \leftarrow w - \eta v

    and :math:`\gamma` kept within `min_gain` and `max_gain`. So weights whose gradient is consistent go faster, and
    those that oscillate slower: growth is by a constant and shrinking by a factor, which takes a large gain back soon.

    What is compared is the sign of two gradients in succession, as in Hinton's lecture, not with their average as in
    Jacobs' paper. A gradient of exactly 0 (a dead unit, a masked weight) agrees with none and differs from none: the
    gain stays, as it does in the first step and in that after the 0. It takes batches large enough that the sign is not
    mostly noise.

    The state of a parameter has `gain`, `grad_sign` (-1, 0 or 1, of the last gradient) and, with momentum,
    `momentum_buffer`, each of shape and dtype of the parameter. There is no step count. In bfloat16 a gain above 16
    would no longer grow by 0.05; `max_gain` is below that unless you raise it.

    Args:
        params: parameters or groups of them; real and imaginary parts of a complex one have a gain each.
        lr: learning rate :math:`\eta`.
        beta: :math:`\beta`, by which gains grow and shrink, in [0, 1).
        momentum: :math:`\mu`, the learning rate outside the buffer, as in torch.optim.SGD.
        min_gain, max_gain: bounds of the gains, `0 <= min_gain <= 1 <= max_gain`.
        weight_decay: L2, added to the gradient, so that its sign counts and the gain scales it.
        maximize: whether to ascend.
        capturable: whether the step may be captured in a CUDA graph.
        differentiable: whether autograd sees the step; the gains are constants to it.
        fused: True leaves unscaling under a :class:`torch.amp.GradScaler` to the step, as in torch's fused classes.
        max_grad_norm: clips the norm of all gradients, over all groups, as
            :func:`torch.nn.utils.clip_grad_norm_` before the step would; the gradients themselves stay as they are.
        norm_group: the processes over which each parameter is split, where that cannot be seen: docs/distributed.md.
        **formats: what parameters and states are stored in: :class:`fusedopt.optim.Formats`.
            There are two, with momentum three.

    Raises:
        ValueError: on a hyper-parameter out of range.
        RuntimeError: on a sparse gradient, in `step`.

    Source: R. A. Jacobs, "Increased rates of convergence through learning rate adaptation", Neural Networks 1 (1988),
    https://doi.org/10.1016/0893-6080(88)90003-2; in the form of G. Hinton, "Neural Networks for Machine Learning",
    lecture 6d (2012), https://www.cs.toronto.edu/~hinton/coursera/lecture6/lec6.pdf.
    """

    _torch_class = _TorchDeltaBarDelta
    _own_options = (*FusedStep._own_options, "fused")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        beta: float = 0.05,
        momentum: float = 0.0,
        min_gain: float = 0.01,
        max_gain: float = 10.0,
        weight_decay: float = 0.0,
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
            beta=beta,
            momentum=momentum,
            min_gain=min_gain,
            max_gain=max_gain,
            weight_decay=weight_decay,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
        )
        self._options(max_grad_norm, norm_group, fused=fused, **formats)

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return _MOMENTUM if group["momentum"] != 0 else _PLAIN, {
            "lr": group["lr"],
            "beta": group["beta"],
            "momentum": group["momentum"],
            "min_gain": group["min_gain"],
            "max_gain": group["max_gain"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }

    def _needs_count(self, group: dict[str, Any]) -> bool:
        return False

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        return "DeltaBarDelta does not support sparse gradients"
