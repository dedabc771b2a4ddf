"""What is right: torch's own classes in float64, and the others in a few lines. Nothing of fusedopt is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

FORMS = ("for-loop", "fused")


class Plain(Optimizer):
    """An optimizer that updates one parameter at a time, in the dtype of the parameters."""

    options: ClassVar[dict[str, Any]]
    """What it takes beside the parameters, with the defaults of our class."""
    decoupled: ClassVar[bool] = False
    """Whether weight decay is no part of the gradient: then `_update` sees to it."""

    def __init__(self, params: Any, **options: Any) -> None:
        if unknown := options.keys() - self.options.keys():
            raise TypeError(f"{type(self).__name__} takes no {', '.join(sorted(unknown))}")
        super().__init__(params, self.options | options)

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    @torch.no_grad()
    def _step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    g = -p.grad if group["maximize"] else p.grad
                    if group["weight_decay"] and not self.decoupled:
                        g = g + group["weight_decay"] * p
                    self._update(p, g, self.state[p], group)

    def _update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Updates a parameter in place by its gradient, which descends, with the state and the group that it has."""
        raise NotImplementedError


class ReferenceClassicSGD(Plain):
    """SGD with the learning rate inside the velocity; with Nesterov, parameters are kept where gradients are taken."""

    options: ClassVar = {
        "lr": 1e-3,
        "momentum": 0.0,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "maximize": False,
        "momentum_form": "classic",
    }

    def _update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        if momentum == 0:
            w.sub_(lr * g)
            return
        if not state:
            state["momentum_buffer"] = lr * g
        else:
            state["momentum_buffer"] = momentum * state["momentum_buffer"] + lr * (1 - group["dampening"]) * g
        v = state["momentum_buffer"]
        w.sub_(lr * g + momentum * v if group["nesterov"] else v)


class ReferenceDeltaBarDelta(Plain):
    """Jacobs' gains by the sign of successive gradients, as in Hinton's lecture 6d."""

    options: ClassVar = {
        "lr": 1e-3,
        "beta": 0.05,
        "momentum": 0.0,
        "min_gain": 0.01,
        "max_gain": 10.0,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def _update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not state:
            state["gain"], state["grad_sign"] = torch.ones_like(w), torch.zeros_like(w)
        gain, before = state["gain"], state["grad_sign"]
        same = ((g > 0) & (before > 0)) | ((g < 0) & (before < 0))
        turned = ((g > 0) & (before < 0)) | ((g < 0) & (before > 0))
        gain[same] += group["beta"]
        gain[turned] *= 1 - group["beta"]
        gain.clamp_(group["min_gain"], group["max_gain"])
        before.copy_(g.sign())
        before[g.isnan()] = 0
        v = gain * g
        if group["momentum"] != 0:
            state.setdefault("momentum_buffer", torch.zeros_like(w))
            v = state["momentum_buffer"].copy_(group["momentum"] * state["momentum_buffer"] + v)
        w.sub_(group["lr"] * v)


class ReferenceLAMB(Plain):
    """LAMB as apex's FusedLAMB has it, with options, computed in the dtype of the parameters."""

    options: ClassVar = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.01,
        "bias_correction": True,
        "grad_averaging": True,
        "decoupled_weight_decay": True,
        "max_grad_norm": 1.0,
        "always_adapt": False,
        "trust_clip": None,
        "phi": None,
        "maximize": False,
    }

    @torch.no_grad()
    def _step(self) -> None:
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        global_norm = sum(float(p.grad.double().square().sum()) for p in params) ** 0.5
        limit = self.defaults["max_grad_norm"]
        shrink = global_norm / limit if limit is not None and global_norm > limit else 1.0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad / shrink, self.state[p], group)

    def _update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = torch.tensor(0.0, device="cpu")  # where torch has it, whatever the default device
            state["exp_avg"] = torch.zeros_like(w)
            state["exp_avg_sq"] = torch.zeros_like(w)
        state["step"] += 1
        t = state["step"].item()
        m, v = state["exp_avg"], state["exp_avg_sq"]
        (beta1, beta2), decay = group["betas"], group["weight_decay"]

        if group["maximize"]:
            g = -g
        if decay and not group["decoupled_weight_decay"]:
            g = g + decay * w
        m.copy_(beta1 * m + (1 - beta1 if group["grad_averaging"] else 1) * g)
        v.copy_(beta2 * v + (1 - beta2) * g * g)

        correction1 = 1 - beta1**t if group["bias_correction"] else 1
        correction2 = 1 - beta2**t if group["bias_correction"] else 1
        u = (m / correction1) / ((v / correction2).sqrt() + group["eps"])
        if decay and group["decoupled_weight_decay"]:
            u = u + decay * w

        ratio = 1.0
        if decay or group["always_adapt"]:
            w_norm, u_norm = w.double().square().sum().sqrt().item(), u.double().square().sum().sqrt().item()
            if group["phi"]:
                low, high = group["phi"]
                w_norm = min(max(w_norm, low), high)
            ratio = w_norm / u_norm if w_norm != 0 and u_norm != 0 else 1.0
            if group["trust_clip"] is not None:
                ratio = min(ratio, group["trust_clip"])
        w.sub_(group["lr"] * ratio * u)


class ReferenceSWATS(Plain):
    """Algorithm 1 of Keskar and Socher, a phase for each group, written down in the order of its lines."""

    options: ClassVar = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-9, "weight_decay": 0.0, "maximize": False}

    @property
    def phase(self) -> list[str]:
        return ["sgd" if "Lambda" in group.get("of_group", {}) else "adam" for group in self.param_groups]

    @torch.no_grad()
    def _step(self) -> None:
        for group in self.param_groups:
            of_group = group.setdefault("of_group", {"k": 0, "lambda": 0.0})
            pp = pg = 0.0
            for w in group["params"]:
                if w.grad is None:
                    continue
                g = -w.grad if group["maximize"] else w.grad
                if group["weight_decay"]:
                    g = g + group["weight_decay"] * w
                p = self._move(w, g, self.state[w], group, of_group)
                pp += float((p.double() ** 2).sum())
                pg += float((p.double() * g.double()).sum())
            if pp and "Lambda" not in of_group:
                of_group["k"] += 1
                if pg != 0:
                    self._project(pp / -pg, of_group, group)

    def _move(
        self, w: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any], of_group: dict[str, float]
    ) -> Tensor:
        if not state:
            state["step"] = torch.tensor(0.0, device="cpu")  # where torch has it, whatever the default device
            state.update({name: torch.zeros_like(w) for name in ("exp_avg", "exp_avg_sq", "momentum_buffer")})
        state["step"] += 1
        k, (beta1, beta2) = state["step"].item(), group["betas"]
        if "Lambda" in of_group:
            v = state["momentum_buffer"].copy_(beta1 * state["momentum_buffer"] + g)
            p = -(1 - beta1) * of_group["Lambda"] * (group["lr"] / of_group["lr"]) * v
        else:
            m = state["exp_avg"].copy_(beta1 * state["exp_avg"] + (1 - beta1) * g)
            a = state["exp_avg_sq"].copy_(beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g)
            p = -group["lr"] * (1 - beta2**k) ** 0.5 / (1 - beta1**k) * (m / (a.sqrt() + group["eps"]))
        w.add_(p)
        return p

    def _project(self, gamma: float, of_group: dict[str, float], group: dict[str, Any]) -> None:
        beta2 = group["betas"][1]
        of_group["lambda"] = beta2 * of_group["lambda"] + (1 - beta2) * gamma
        settled = of_group["lambda"] / (1 - beta2 ** of_group["k"])
        if of_group["k"] > 1 and abs(settled - gamma) < group["eps"] and settled > 0:
            of_group.update({"Lambda": settled, "lr": float(group["lr"])})


class Reference:
    """An optimizer to compare with: torch's class (or one from above) in one of its forms.

    Clipping, which torch has beside its optimizers, is done on copies of the gradients.
    """

    def __init__(
        self,
        cls: type[Optimizer],
        params: list[Tensor],
        groups: list[dict[str, Any]],
        kwargs: dict[str, Any],
        *,
        form: str = "for-loop",
        max_grad_norm: float | None = None,
    ) -> None:
        self.params = params
        self._max_grad_norm = None
        if issubclass(cls, ReferenceLAMB):
            self.optimizer: Optimizer = cls(groups, max_grad_norm=max_grad_norm, **kwargs)
        else:
            self._max_grad_norm = max_grad_norm
            form_kwargs = {"fused": True} if form == "fused" else {"foreach": False}
            self.optimizer = cls(groups, **kwargs, **({} if issubclass(cls, Plain) else form_kwargs))

    def step(self, grads: list[Tensor | None]) -> None:
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = None if grad is None else grad.to(p.dtype, copy=True)
        if self._max_grad_norm is not None:
            self._clip(self._max_grad_norm)
        self.optimizer.step()

    def _clip(self, max_norm: float) -> None:
        """As torch.nn.utils.clip_grad_norm_, which in float64 would count for exact and is not."""
        if self.params[0].dtype != torch.float64:
            torch.nn.utils.clip_grad_norm_(self.params, max_norm)
            return
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = float(np.sqrt(sum(np.square(grad.cpu().numpy(), dtype=np.longdouble).sum() for grad in grads)))
        for grad in grads:
            grad.mul_(min(max_norm / (norm + 1e-6), 1.0))


def has_form(twin: type[Optimizer] | None, form: str) -> bool:
    """Whether torch has this class in this form."""
    fused = (torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam, torch.optim.AdamW)
    return form == "for-loop" or twin in fused
