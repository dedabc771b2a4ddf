"""SGD with momentum and Nesterov, the learning rate outside the momentum buffer or inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from fusedopt._extension import _C
from fusedopt.optim._codecs import is_coded
from fusedopt.optim._formats import Formats
from fusedopt.optim._fused import FusedStep
from fusedopt.optim._plain import PlainOptimizer, scalar

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_PLAIN, _MOMENTUM = _C.RULES["sgd"], _C.RULES["sgd_momentum"]

MomentumForm = Literal["torch", "classic"]


def _is_classic(group: dict[str, Any]) -> bool:
    form = group.get("momentum_form", "torch")
    if form not in ("torch", "classic"):
        raise ValueError(f"Invalid momentum_form: {form!r}; it must be 'torch' or 'classic'")
    return bool(form == "classic")


class _ClassicSGD(PlainOptimizer):
    """SGD with classic momentum in plain PyTorch."""

    def _update(self, group: dict[str, Any], param: Tensor, grad: Tensor) -> None:
        state, momentum = self.state[param], group["momentum"]
        if group["weight_decay"] != 0:
            grad = grad + group["weight_decay"] * (param.clone() if group["differentiable"] else param)
        pull = scalar(group["lr"]) * grad
        if state.get("momentum_buffer") is None:  # the first gradient is not dampened
            state["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format).add_(pull.detach())
        else:
            state["momentum_buffer"].mul_(momentum).add_((1 - group["dampening"]) * pull)
        velocity = state["momentum_buffer"]
        param.sub_(momentum * velocity + pull if group["nesterov"] else velocity)


class SGD(FusedStep, torch.optim.SGD):
    r"""torch.optim.SGD with a fused step, and with a choice of where the learning rate stands in the momentum.

    With the gradient g (negated by `maximize`, with `weight_decay` times the parameter added), momentum :math:`\mu` and
    dampening :math:`\tau`:

    .. math::
        \text{torch:}   \quad & v \leftarrow \mu v + (1 - \tau) g,      & w \leftarrow w - \eta v
                              \quad & (\text{Nesterov: } w - \eta (g + \mu v)) \\
        \text{classic:} \quad & v \leftarrow \mu v + (1 - \tau) \eta g, & w \leftarrow w - v
                              \quad & (\text{Nesterov: } w - (\eta g + \mu v))

    where the first v is g, or :math:`\eta g`. While the learning rate is constant, both go the same way. Under a
    schedule the torch form rescales the velocity of the past at once; in the classic form, that of Sutskever et al.,
    past steps go on with the rate that they were taken with, and a new rate takes about :math:`1 / (1 - \mu)` steps to
    have its full effect.

    The state of a parameter has, with momentum, `momentum_buffer` (shape and dtype of the parameter): v, so in the
    classic form a velocity in the units of the parameter, smaller by the learning rate than the torch form's. (In
    float16, where it may be too small, prefer the torch form.)

    A state_dict says its form. `load_state_dict` converts the buffers of the other form, torch.optim.SGD's among them,
    by the learning rate in the state_dict, so that the next step is the one that the saved optimizer would have made.
    torch.optim.SGD cannot do this: it would read a classic velocity as its own buffer, which is much larger. To go
    there, load the classic state into ``SGD(..., momentum_form="torch")`` first, and its state_dict into torch's.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize, differentiable: as in
            :class:`torch.optim.SGD`.
        foreach, fused: choose only among torch's own implementations, for parameters that fall back to them;
            `fused=True` also leaves unscaling under a :class:`torch.amp.GradScaler` to the step.
        momentum_form: "torch" or "classic"; groups may differ. To change it in the middle of a run, save and load.
        capturable: whether the step may be captured in a CUDA graph.
        max_grad_norm: clips the norm of all gradients, over all groups, as
            :func:`torch.nn.utils.clip_grad_norm_` before the step would; the gradients themselves stay as they are.
        norm_group: the processes over which each parameter is split, where that cannot be seen: docs/distributed.md.
        **formats: what parameters and states are stored in: :class:`fusedopt.optim.Formats`.
            There is one, with momentum.

    Raises:
        ValueError: where torch's class does, for a negative `max_grad_norm`, for an unknown `momentum_form`, and on
            loading buffers of the other form with a learning rate of 0, by which nothing can be converted.

    Source: https://proceedings.mlr.press/v28/sutskever13.html, and https://docs.pytorch.org/docs/stable/optim.html.
    """

    _torch_class = torch.optim.SGD
    _group_options: ClassVar[dict[str, Any]] = {
        **FusedStep._group_options,
        "capturable": False,
        "momentum_form": "torch",
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        momentum_form: MomentumForm = "torch",
        capturable: bool = False,
        max_grad_norm: float | None = None,
        norm_group: ProcessGroup | None = None,
        **formats: Unpack[Formats],
    ) -> None:
        _is_classic({"momentum_form": momentum_form})
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self._options(max_grad_norm, norm_group, capturable=capturable, momentum_form=momentum_form, **formats)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's."""
        if isinstance(param_group, dict):
            _is_classic(param_group)
        super().add_param_group(param_group)

    def _convert_states(self, state: dict[str, Any]) -> None:
        live = self.__dict__.get("param_groups", [])
        for i, group in enumerate(state["param_groups"]):
            classic = _is_classic(group)
            group.setdefault("momentum_form", "torch")  # torch's own, and ours where it is no other
            if i < len(live) and classic != _is_classic(live[i]):
                _convert(state["state"], group, to_classic=not classic)
                group["momentum_form"] = "torch" if classic else "classic"

    def _to_torch(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            if _is_classic(group):
                _convert(state["state"], group, to_classic=False)
        for index, values in state["state"].items():
            state["state"][index] = {name: value for name, value in values.items() if name != "step"}

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return _MOMENTUM if group["momentum"] != 0 else _PLAIN, {
            "lr": group["lr"],
            "momentum": group["momentum"],
            "dampening": group["dampening"],
            "nesterov": group["nesterov"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
            "classic": _is_classic(group),
        }

    def _needs_count(self, group: dict[str, Any]) -> bool:
        # From a buffer of zeros, the first step is like any other unless the others are dampened.
        return bool(group["momentum"] != 0 and group["dampening"] != 0)

    def _init_states(self, group: dict[str, Any], params: list[Tensor]) -> None:
        # torch's first momentum buffer is a copy of the first gradient. The rule writes it, unread.
        for p in params if group["momentum"] != 0 else ():
            self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def _torch_class_of(self, group: dict[str, Any]) -> type[Optimizer]:
        return _ClassicSGD if _is_classic(group) and group["momentum"] != 0 else torch.optim.SGD

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        if group["weight_decay"] != 0:
            return "add(sparse, dense) is not supported. Use add(dense, sparse) instead."
        return None


def _convert(states: dict[Any, Any], group: dict[str, Any], *, to_classic: bool) -> None:
    """Replaces the momentum buffers of a group by those of the other form: velocity = lr * buffer."""
    lr = float(group["lr"])
    for p in group["params"]:
        buffer = states.get(p, {}).get("momentum_buffer")
        if buffer is None:
            continue
        if lr == 0:
            forms = ("torch", "classic") if to_classic else ("classic", "torch")
            raise ValueError(
                "cannot load momentum buffers of momentum_form={!r} into an optimizer with {!r}: they are converted by "
                "the learning rate, which is 0 in the state_dict. Keep the form, or load a state saved at another "
                "rate.".format(*forms)
            )
        numbers = buffer[1] if is_coded(buffer) else buffer  # codes are shares of the largest number in their block
        numbers = numbers * lr if to_classic else numbers / lr
        states[p] = {**states[p], "momentum_buffer": (buffer[0], numbers) if is_coded(buffer) else numbers}
