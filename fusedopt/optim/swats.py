"""SWATS: Adam that switches to SGD (Keskar and Socher, https://arxiv.org/abs/1712.07628)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, _get_scalar_dtype

from fusedopt._extension import _C
from fusedopt.optim._formats import Formats
from fusedopt.optim._fused import FusedStep
from fusedopt.optim._plain import PlainOptimizer, check_numbers, number, real, scalar
from fusedopt.optim._processes import Spread
from fusedopt.sharding import is_dtensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_RULE = _C.RULES["swats"]


class _TorchSWATS(PlainOptimizer):
    """SWATS in plain PyTorch."""

    def __init__(self, params: ParamsT, **defaults: Any) -> None:
        check_numbers(defaults)
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
                for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
                    state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
            for name in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
                if name not in state:
                    raise KeyError(name)

    def _update_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        if any(p.device.type == _C.GPU for p in params) and _C.is_capturing():
            raise RuntimeError("SWATS: only the fused path can be captured in a CUDA graph; explain() says what is not")
        ratio = number(group["switch"][2])
        spread: Spread | None = self.__dict__.get("_spread")
        sums, once = [0.0, 0.0], [0.0, 0.0]  # of squared steps, and of steps times gradients
        for p in params:
            assert p.grad is not None
            moved = _move(group, ratio, p, -p.grad if group["maximize"] else p.grad, self.state[p])
            here = once if spread is not None and id(p) in spread.everywhere else sums
            for k, total in enumerate(moved or ()):
                here[k] += number(total.full_tensor() if is_dtensor(total) else total)  # type: ignore[attr-defined]
        if spread is not None and not ratio > 0:
            sums = spread.total(sums)
        self._end_group(group, sums[0] + once[0], sums[1] + once[1])

    def _end_group(self, group: dict[str, Any], step_square: float, step_dot_grad: float) -> None:
        """Decides by the sums of a step of Adam."""
        if step_square != 0:
            _decide(group, step_square, step_dot_grad)

    def _first_pass(
        self, group: dict[str, Any], param: Tensor, grad: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Of a shard: what it has of p.p and p.g. What follows is the group's."""
        sums = _move(group, group["switch"][2].item(), param, grad, state)
        here = torch.zeros(2, dtype=torch.float64, device=param.device) if sums is None else torch.stack(sums)
        return here, lambda everywhere: None


def _move(
    group: dict[str, Any], ratio: float, param: Tensor, grad: Tensor, state: dict[str, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Updates a parameter; a step of Adam returns p.p and p.g."""
    state = {name: real(v) if isinstance(v, Tensor) else v for name, v in state.items()}
    param, grad = real(param), real(grad)
    if group["weight_decay"] != 0:
        grad = grad + group["weight_decay"] * (param.clone() if group["differentiable"] else param)
    state["step"] += 1
    step = _sgd(group, ratio, grad, state) if ratio > 0 else _adam(group, grad, state)
    param.add_(step)
    if ratio > 0:
        return None
    exact_step, exact_grad = step.detach().double(), grad.detach().double()
    return (exact_step * exact_step).sum(), (exact_step * exact_grad).sum()


def _adam(group: dict[str, Any], grad: Tensor, state: dict[str, Tensor]) -> Tensor:
    beta1, beta2 = map(scalar, group["betas"])
    mean = state["exp_avg"].mul_(beta1).add_(grad, alpha=1 - beta1)  # type: ignore[arg-type]
    square = state["exp_avg_sq"].mul_(beta2).add_(grad * grad * (1 - beta2))
    if group["differentiable"]:  # autograd keeps what the next step overwrites
        mean, square = mean.clone(), square.clone()
    count = number(state["step"])
    step_size = scalar(group["lr"]) * (math.sqrt(1 - beta2**count) / (1 - beta1**count))
    step: Tensor = -step_size * (mean / (square.sqrt() + group["eps"]))
    return step


def _sgd(group: dict[str, Any], ratio: float, grad: Tensor, state: dict[str, Tensor]) -> Tensor:
    beta1, _ = map(scalar, group["betas"])
    velocity = state["momentum_buffer"].mul_(beta1).add_(grad)
    step_size = scalar(group["lr"]) * ((1 - beta1) * ratio)
    step: Tensor = -step_size * (velocity.clone() if group["differentiable"] else velocity)
    return step


def _decide(group: dict[str, Any], step_square: float, step_dot_grad: float) -> None:
    """What follows a step of Adam that has moved something."""
    count, average, ratio = map(number, group["switch"])
    count += 1
    if step_dot_grad != 0:
        beta2 = float(group["betas"][1])
        projection = step_square / -step_dot_grad
        average = beta2 * average + (1 - beta2) * projection
        settled = average / (1 - beta2**count)
        if count > 1 and abs(settled - projection) < group["eps"] and settled > 0:
            lr = group["lr"]
            ratio = settled / (lr.item() if isinstance(lr, Tensor) else lr)
    for memory, value in zip(group["switch"], (count, average, ratio), strict=True):
        memory.fill_(value)


class SWATS(FusedStep, _TorchSWATS):
    r"""Adam that switches to SGD with momentum, at a learning rate which it finds itself; with a fused step.

    Step k of a parameter group, from the gradient g (negated by `maximize`, with `weight_decay` times the parameter
    added), is Adam's, and corresponds to the step size with which SGD would go as far along the gradient:

    .. math::
        p_k = -\eta \frac{\sqrt{1 - \beta_2^k}}{1 - \beta_1^k} \frac{m_k}{\sqrt{a_k} + \epsilon}, \qquad
        w \leftarrow w + p_k, \qquad
        \gamma_k = \frac{p_k^\top p_k}{-p_k^\top g_k}, \qquad
        \lambda_k = \beta_2 \lambda_{k-1} + (1 - \beta_2) \gamma_k

    over all parameters of the group together; where :math:`p_k^\top g_k = 0`, lambda stays, and a step of length 0 (at
    lr=0, say) does not count. As soon as that step size has settled,
    :math:`|\lambda_k / (1 - \beta_2^k) - \gamma_k| < \epsilon` with k > 1, the group goes on with SGD at
    :math:`\Lambda = \lambda_k / (1 - \beta_2^k)`, from v = 0 and for good:

    .. math:: v \leftarrow \beta_1 v + g, \qquad w \leftarrow w - (1 - \beta_1) \Lambda v

    Three things that the paper leaves open: each group has a switch of its own. :math:`\Lambda` must be positive, or
    SGD would climb. A schedule, or you, may go on to change `lr`: :math:`\Lambda` is scaled by `lr` over that at the
    switch. As in the paper `eps` is in both places, and beside the root before its correction; the decision is about
    step sizes, so a default of 1e-9 next to steps of 1e-3 asks for a lot: see docs/optimizers/swats.md for what a
    larger one does.

    A group decides within its step's own launch, and the host does not wait to learn of it. The decision is taken where
    the group's first parameter is: a group with parameters on several devices, or with one that cannot be fused, takes
    the plain path as a whole (`explain()` says so), with the same result.

    The state of a parameter has `step` (float32 scalar), `exp_avg`, `exp_avg_sq`, and `momentum_buffer` (v), each of
    shape and dtype of the parameter; a group has `switch`, float64 [3]: k, lambda and, 0 before the switch,
    :math:`\Lambda / \eta`. A state_dict of torch.optim.Adam's, which has neither `switch` nor `momentum_buffer`, counts
    as not switched, with its projections still to be averaged.

    Args:
        params: parameters or groups of them; real and imaginary parts of a complex one are two.
        lr: learning rate :math:`\eta` of the Adam phase; may change with a schedule, in both phases.
        betas: :math:`\beta_1, \beta_2`: decay of the two moments; the first is the momentum of SGD too, the second
            averages the projections.
        eps: :math:`\epsilon`, in the denominator and in the decision.
        weight_decay: L2, added to the gradient.
        maximize: whether to ascend.
        capturable: whether the step may be captured in a CUDA graph.
        differentiable: whether autograd sees the step; what is decided is a constant to it.
        fused: True leaves unscaling under a :class:`torch.amp.GradScaler` to the step, as in torch's fused classes.
        max_grad_norm: clips the norm of all gradients, over all groups, as
            :func:`torch.nn.utils.clip_grad_norm_` before the step would; the gradients themselves stay as they are.
        norm_group: the processes over which each parameter is split, where that cannot be seen: docs/distributed.md.
        **formats: what parameters and states are stored in: :class:`fusedopt.optim.Formats`. There are three.

    Raises:
        ValueError: on a hyper-parameter out of range.
        RuntimeError: on a sparse gradient, in `step`.

    Source: N. S. Keskar and R. Socher, "Improving generalization performance by switching from Adam to SGD" (2017),
    https://arxiv.org/abs/1712.07628, algorithm 1.
    """

    _torch_class = _TorchSWATS
    _sum_scope = _C.SCOPES[_RULE]
    _own_options = (*FusedStep._own_options, "fused")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-9,
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
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
        )
        self._options(max_grad_norm, norm_group, fused=fused, **formats)

    @property
    def phase(self) -> list[Literal["adam", "sgd"]]:
        """Where each group is. Waits for a GPU."""
        return ["adam" if group["switch"][2].item() == 0 else "sgd" for group in self.param_groups]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's."""
        super().add_param_group(param_group)
        self.param_groups[-1]["switch"] = torch.zeros(3, dtype=torch.float64, device="cpu")

    def state_dict(self) -> dict[str, Any]:
        """As torch's."""
        state = super().state_dict()
        for group in state["param_groups"]:  # a group's own is loaded in place
            group["switch"] = group["switch"].clone()
        return state

    def _convert_states(self, state: dict[str, Any]) -> None:
        groups, live = state["param_groups"], self.__dict__.get("param_groups", [])
        loaded = [group.get("switch", torch.zeros(3, dtype=torch.float64, device="cpu")) for group in groups]
        for i, switch in enumerate(loaded):
            if not (isinstance(switch, Tensor) and switch.shape == (3,) and switch.dtype == torch.float64):
                raise ValueError(f"group {i}: switch must be a float64 tensor [3]; load a state that SWATS saved")
        for i, (group, switch) in enumerate(zip(groups, loaded, strict=True)):
            # In place, where a CUDA graph may go on to use it.
            group["switch"] = live[i]["switch"].copy_(switch) if i < len(live) else switch
        for param, values in state["state"].items():
            known = values if isinstance(param, Tensor) and isinstance(values, dict) else {}
            if "exp_avg" in known and "momentum_buffer" not in known:  # Adam's
                values["momentum_buffer"] = torch.zeros_like(values["exp_avg"])

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        first = next(iter(group["params"]), None)
        if first is not None and group["switch"].device != first.device:
            group["switch"] = group["switch"].to(first.device)
        beta1, beta2 = group["betas"]
        numbers = {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }
        return _RULE, numbers, group["switch"]

    def _is_late(self, group: dict[str, Any]) -> bool:
        return bool(group["switch"][2].item() != 0)

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        return "SWATS does not support sparse gradients"
