"""LAMB in PyTorch operations on lists of tensors: what a fused LAMB has to beat."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer


class LambForeach(Optimizer):
    """LAMB as in NVIDIA apex's ``FusedLAMB``, with few passes over memory and no temporary that can be avoided.

    The global gradient norm is clipped to ``max_grad_norm``, the moments are those of Adam with bias correction, the
    update is ``m_hat / (sqrt(v_hat) + eps) + weight_decay * w``, and each tensor moves by ``lr * ||w|| / ||update||``
    times its update (by ``lr`` times it where a norm is 0, or where there is no weight decay).

    Every parameter of a group is at the same step, so the count lives in the group. The operations run over buckets
    of consecutive tensors that hold at most ``bucket_elements`` together (but at least one tensor): long lists save
    calls, short ones keep the temporaries in the cache. 0 is the plain loop over tensors.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        max_grad_norm: float = 1.0,
        bucket_elements: int = 2**20,
    ) -> None:
        self.max_grad_norm = max_grad_norm
        self.bucket_elements = bucket_elements
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updated = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        grads = [cast(Tensor, p.grad) for params in updated for p in params]
        if not grads:
            return loss
        clip = self._clip_coefficient(grads)
        for group, params in zip(self.param_groups, updated, strict=True):
            if not params:
                continue
            group["step"] += 1
            for bucket in self._buckets(params):
                self._update(bucket, group, clip)
        return loss

    def _buckets(self, params: Sequence[Tensor]) -> list[list[Tensor]]:
        buckets: list[list[Tensor]] = []
        room = -1
        for p in params:
            if p.numel() > room:
                buckets.append([])
                room = self.bucket_elements
            buckets[-1].append(p)
            room -= p.numel()
        return buckets

    def _clip_coefficient(self, grads: list[Tensor]) -> float:
        norm = torch.linalg.vector_norm(_norms(grads)).item()
        return self.max_grad_norm / norm if norm > self.max_grad_norm else 1.0

    def _update(self, params: list[Tensor], group: dict[str, Any], clip: float) -> None:
        beta1, beta2 = group["betas"]
        correction1, correction2 = 1 - beta1 ** group["step"], 1 - beta2 ** group["step"]
        grads = [cast(Tensor, p.grad) for p in params]
        exp_avgs, exp_avg_sqs = self._moments(params)

        if clip == 1.0:
            torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        else:  # The clip goes into the factors: clipped gradients would be a temporary the size of the model.
            torch._foreach_mul_(exp_avgs, beta1)
            torch._foreach_add_(exp_avgs, grads, alpha=(1 - beta1) * clip)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, (1 - beta2) * clip**2)

        # m_hat / (sqrt(v_hat) + eps) with both bias corrections moved into scalars, which saves two passes.
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_add_(denominators, group["eps"] * correction2**0.5)
        scale = correction2**0.5 / correction1
        if group["weight_decay"] == 0:
            torch._foreach_addcdiv_(params, exp_avgs, denominators, -group["lr"] * scale)
            return
        updates = torch._foreach_mul(params, group["weight_decay"])
        torch._foreach_addcdiv_(updates, exp_avgs, denominators, scale)
        steps = self._trust_ratios(params, list(updates)).mul_(-group["lr"])
        # addcmul with a 0-dimensional factor: one pass instead of scaling the updates and then adding them.
        torch._foreach_addcmul_(params, updates, steps.to(params[0].dtype).unbind(), 1.0)

    def _moments(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for p in params:
            if not self.state[p]:
                self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        states = [self.state[p] for p in params]
        return [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]

    @staticmethod
    def _trust_ratios(params: list[Tensor], updates: list[Tensor]) -> Tensor:
        param_norms = _norms(params)
        update_norms = _norms(updates)
        both = (param_norms > 0) & (update_norms > 0)
        return torch.where(both, param_norms / update_norms, 1.0)


def _norms(tensors: list[Tensor]) -> Tensor:
    """Each tensor's norm, computed in float32 at least."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(tensors, 2, dtype))
