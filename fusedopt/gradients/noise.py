"""Gaussian noise on the gradients, whose variance falls as training goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedopt.sharding import is_dtensor, local, local_part


class GradientNoise:
    """Adds Gaussian noise to every gradient before each step of an optimizer.

    The noise of step t = 0, 1, ... is drawn from N(0, eta / (1 + t)^gamma), independently for each element, and added
    to `param.grad`; where a closure is given to `step()`, to the gradients that it leaves. Under a `GradScaler` that
    leaves unscaling to the step (that of an optimizer with `fused=True`), the noise is scaled as the gradients are.

    It draws from generators of its own, one per device: the same seed gives the same noise, whatever else draws random
    numbers and whatever the number of threads. A step that a `GradScaler` skips counts as a step where the optimizer is
    called to skip it, with `fused=True`. DTensors get the noise that one process would add, each process its part; for
    that each draws the noise of a whole tensor at a time. Where FSDP1 gives each process parts of the parameters, each
    draws noise of its own, from seed + rank.

    Args:
        optimizer: any optimizer; the noise is added until `detach()` is called.
        eta: variance of the first step's noise, at least 0; the source recommends 0.01, 0.3 or 1.
        gamma: how fast the variance falls, at least 0.
        seed: of the noise.

    Raises:
        ValueError: eta or gamma is negative or not finite.
        RuntimeError: (by `step()`) a gradient is sparse. Nothing has been changed then.

    Source: Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep Networks", 2015,
    https://arxiv.org/abs/1511.06807.
    """

    def __init__(self, optimizer: Optimizer, eta: float = 0.3, gamma: float = 0.55, *, seed: int = 0) -> None:
        for name, value in (("eta", eta), ("gamma", gamma)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be finite and at least 0, not {value}")
        self.eta, self.gamma, self.seed, self._first_seed = eta, gamma, seed, seed
        self.steps = 0
        """Number of steps whose noise has been added."""
        self._generators: dict[str, torch.Generator] = {}
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    def variance(self, step: int) -> float:
        """Returns the variance of the noise of a step, counted from 0."""
        return float(self.eta / (1 + step) ** self.gamma)

    def detach(self) -> None:
        """Removes the noise: the optimizer's later steps have none."""
        self._hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Returns how far the noise has come; `eta`, `gamma` and `seed` are the constructor's and not part of it."""
        states = {device: generator.get_state() for device, generator in self._generators.items()}
        return {"steps": self.steps, "generators": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was saved: the steps that follow get the noise they would have got."""
        generators = {}
        for device, generator_state in state["generators"].items():
            generators[device] = torch.Generator(device)
            generators[device].set_state(generator_state.cpu())
        self.steps, self._generators = state["steps"], generators

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # args[0] is the optimizer. The gradients that a closure leaves do not exist yet.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._add(optimizer, self.steps)
            self.steps += 1
            return None
        step, self.steps = self.steps, self.steps + 1
        noisy = self._noisy(closure, optimizer, step)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": noisy}
        return (args[0], noisy, *args[2:]), kwargs

    def _noisy(self, closure: Callable[[], Any], optimizer: Optimizer, step: int) -> Callable[[], Any]:
        def noisy() -> Any:
            loss = closure()
            self._add(optimizer, step)
            return loss

        return noisy

    @torch.no_grad()
    def _add(self, optimizer: Optimizer, step: int) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if not self._generators and any(getattr(p, "_fsdp_flattened", False) for p in params):
            self._first_seed = self.seed + torch.distributed.get_rank()
        gradients: list[Tensor] = [p.grad for p in params if p.grad is not None]
        if any(gradient.layout != torch.strided for gradient in gradients):
            raise RuntimeError("GradientNoise would make a sparse gradient dense; use sparse=False in its layer")
        std = math.sqrt(self.variance(step))
        scale = getattr(optimizer, "grad_scale", None)
        for gradient in gradients:
            noise = self._noise(gradient, std)
            gradient.add_(noise if scale is None else noise.mul_(scale.to(noise.device)))

    def _noise(self, gradient: Any, std: float) -> Tensor:
        generator = self._generator(gradient.device)
        if not is_dtensor(gradient):
            return torch.empty_like(gradient).normal_(0, std, generator=generator)
        # All of it is drawn on every process, so that the noise is that of one process, whatever the mesh.
        whole = torch.empty(gradient.shape, dtype=gradient.dtype, device=local(gradient).device)
        part = local_part(whole.normal_(0, std, generator=generator), gradient).contiguous()
        coordinate = gradient.device_mesh.get_coordinate()
        for dim, placement in enumerate(gradient.placements):
            if coordinate is not None and placement.is_partial("sum") and coordinate[dim] != 0:
                part = torch.zeros_like(part)  # to a sum that is still to be taken, one of its parts adds the noise
        noise: Tensor = type(gradient)(part, gradient._spec, requires_grad=False)
        return noise

    def _generator(self, device: torch.device) -> torch.Generator:
        if str(device) not in self._generators:
            self._generators[str(device)] = torch.Generator(device).manual_seed(self._first_seed)
        return self._generators[str(device)]


class ExponentialGradientNoise(GradientNoise):
    """Gradient noise whose variance falls exponentially from epoch to epoch: N(0, eta * gamma^epoch).

    Otherwise as `GradientNoise`.

    Args:
        optimizer, eta, seed: as there.
        gamma: factor per epoch, above 0 and at most 1, as in `torch.optim.lr_scheduler.ExponentialLR`.
        steps_per_epoch: number of optimizer steps in an epoch, at least 1.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, optimizer: Optimizer, eta: float = 0.3, gamma: float = 0.9, *, steps_per_epoch: int, seed: int = 0
    ) -> None:
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be above 0 and at most 1, not {gamma}")
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch must be at least 1, not {steps_per_epoch}")
        super().__init__(optimizer, eta, gamma, seed=seed)
        self.steps_per_epoch = steps_per_epoch

    def variance(self, step: int) -> float:
        """Returns the variance of the noise of a step, counted from 0."""
        return float(self.eta * self.gamma ** (step // self.steps_per_epoch))
