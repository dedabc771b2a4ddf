"""A step of an optimizer with DTensors: what the plain step does, with sums that go over the processes between."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from fusedopt import sharding
from fusedopt._extension import _C
from fusedopt.optim._base import Base
from fusedopt.optim._in_float32 import InFloat32, refuse_sharing, share_memory, steps_as_it_is
from fusedopt.optim._plain import check_size
from fusedopt.optim._scaling import Scaling, Scalings, gradient_scale
from fusedopt.optim._shards import Domains, params_of, placed
from fusedopt.optim._torch import (
    look_again,
    new_states,
    refuse_capturable,
    refuse_capture,
    refuse_sparse,
    select,
    square_sum,
    torch_step,
)
from fusedopt.optim._undo import restored_if_refused
from fusedopt.sharding import is_dtensor, local

Found = tuple[list[int], list[int], list[int], list[int]]
"""What `Plan.refresh` returns."""


def agreed(optimizer: Base, scaling: Scaling) -> Scaling:
    """An overflow anywhere is one everywhere: otherwise some processes would step and others not."""
    found = scaling.found_inf
    if found is None:
        return scaling
    found = local(found.full_tensor() if is_dtensor(found) else found)  # type: ignore[union-attr]
    if not isinstance(found, Tensor):
        found = torch.tensor(float(found or 0), dtype=torch.float32, device="cpu")
    domains = optimizer._domains if optimizer._domains is not None else _new_domains(optimizer)
    everywhere = tuple({group.group_name: group for groups in domains.groups for group in groups}.values())
    found = found.clone()
    sharding.all_reduce([(everywhere, found)])
    return Scaling(scaling.grad_scale, found)


def sharded_step(optimizer: Base, refresh: Callable[..., Found], found: Found, scaling: Scaling) -> None:
    """Performs the step once the plan has seen that there are DTensors. Every process takes part in what is reduced."""
    plan = optimizer._plan
    assert plan is not None
    leftover, missing, uncounted, unplaced = found
    with ExitStack() as stack:
        if unplaced:
            stack.enter_context(placed(optimizer, unplaced))
            leftover, missing, uncounted, _ = refresh(False, True)
        devices = plan.devices
        if devices and devices[-1] >= 0 and _C.is_capturing():
            refuse_capture(optimizer)
        reduces = optimizer.defaults["max_grad_norm"] is not None or optimizer._sum_scope is not None
        on_host = bool(leftover) or not devices or devices[0] < 0
        if on_host:
            refuse_capturable(optimizer)
        if on_host and scaling.on_gpu and scaling.overflowed():
            if reduces:
                _join(optimizer, domains_of(optimizer))
            return
        refuse_sparse(optimizer, leftover)
        stack.enter_context(new_states(optimizer, missing))
        leftover = look_again(optimizer, refresh, leftover, missing, uncounted)
        if not reduces:
            scale, scalings = gradient_scale(optimizer, devices, leftover, scaling)
            if leftover:
                torch_step(optimizer, leftover, scale, guarded=True)
                refresh(True, True, done=leftover)
            plan.run(scale, scalings, 0.0, 0.0)
            return
        domains = domains_of(optimizer)
        scale, scalings = _scale(optimizer, domains, devices, leftover, scaling)
        sums = domains.zeros([2 * size for size in domains.sizes])
        stack.enter_context(restored_if_refused(optimizer, select(optimizer, leftover)))
        second_passes = _first_passes(optimizer, domains, leftover, scale, sums, stack)
        if leftover:
            alone = [i for i in leftover if domains.slots[i] < 0]
            torch_step(optimizer, alone, scale, guarded=False)
            refresh(True, True, done=leftover)
        arguments = (scale, scalings, optimizer.defaults["max_grad_norm"] or 0.0, optimizer._clip_epsilon)
        if not any(domains.sizes):
            plan.run(*arguments)
            return
        plan.begin(*arguments, sums)
        domains.all_reduce(sums)
        for second_pass in second_passes:
            second_pass(sums)
        plan.end(*arguments, sums)


def _join(optimizer: Base, domains: Domains) -> None:
    """Takes part in the sums of a step that is skipped: a process whose parameters are all on GPUs does not know."""
    if optimizer.defaults["max_grad_norm"] is not None:
        domains.all_reduce(domains.zeros())
    domains.all_reduce(domains.zeros([2 * size for size in domains.sizes]))


def torch_sharded_step(optimizer: Base, indices: list[int], scaling: Scaling) -> None:
    """Performs the step with torch's class alone."""
    domains = optimizer._domains = _new_domains(optimizer)
    with ExitStack() as stack:
        stack.enter_context(placed(optimizer, indices))
        scale, _ = _scale(optimizer, domains, [], indices, scaling)
        if any(group["differentiable"] for group in optimizer.param_groups):
            torch_step(optimizer, indices, scale, guarded=False)  # autograd sees DTensors, whose operations reduce
            return
        sums = domains.zeros([2 * size for size in domains.sizes])
        stack.enter_context(restored_if_refused(optimizer, select(optimizer, indices)))
        second_passes = _first_passes(optimizer, domains, indices, scale, sums, stack)
        torch_step(optimizer, [i for i in indices if domains.slots[i] < 0], scale, guarded=False)
        domains.all_reduce(sums)
        for second_pass in second_passes:
            second_pass(sums)
        first = 0
        for group in optimizer.param_groups:
            members = range(first, first := first + len(group["params"]))
            shared = sorted({(domains.of[i], domains.slots[i]) for i in members if domains.slots[i] >= 0})
            if optimizer._sum_scope == "group" and shared:
                square, dot = (sum(float(sums[d][2 * slot + k]) for d, slot in shared) for k in (0, 1))
                rule: Any = optimizer
                rule._end_group(group, square, dot)


def domains_of(optimizer: Base) -> Domains:
    """What the plan's walk has seen, looked at again where it has changed."""
    assert optimizer._plan is not None
    if optimizer._domains is None or optimizer._plan.resharded:
        optimizer._domains = _new_domains(optimizer)
        optimizer._plan.set_domains(optimizer._domains.of, optimizer._domains.slots)
    return optimizer._domains


def _new_domains(optimizer: Base) -> Domains:
    return Domains(optimizer.param_groups, optimizer._sum_scope)


def _scale(
    optimizer: Base, domains: Domains, devices: list[int], leftover: list[int], scaling: Scaling
) -> tuple[float, Scalings]:
    """As `gradient_scale`, with the norm over all processes."""
    max_norm = optimizer.defaults["max_grad_norm"]
    if max_norm is None:
        return gradient_scale(optimizer, devices, leftover, scaling)
    params, sums = params_of(optimizer), domains.zeros()
    if optimizer._plan is not None and devices:
        optimizer._plan.add_square_sums(sums)
    for i in leftover:
        grad = params[i].grad
        assert grad is not None
        sums[domains.of[i]] += square_sum(grad)
    domains.all_reduce(sums)
    if not devices or devices[0] < 0 or leftover:
        scale = scaling.factor()
        norm = math.sqrt(sum(map(float, sums))) * abs(scale)
        optimizer._grad_norm = norm
        return scale * _C.clip_coefficient(norm, max_norm, optimizer._clip_epsilon), {}
    there = {gpu: scaling.there(gpu) for gpu in devices}
    scale = 1.0 if scaling.on_gpu else scaling.factor()
    gpus = {device.index or 0: device for device in domains.devices if device.type == _C.GPU}
    total = torch.cat([part.to(sums[0].device) for part in sums]).sum()
    grad_scale = there[devices[0]][0]
    optimizer._grad_norm = total.sqrt() * scale / (1.0 if grad_scale is None else grad_scale.to(total.device))
    return scale, {gpu: (*there[gpu], total.to(gpus[gpu])) for gpu in devices}


@torch.no_grad()
def _first_passes(
    optimizer: Base, domains: Domains, indices: list[int], scale: float, sums: list[Tensor], stack: ExitStack
) -> list[Callable[[list[Tensor]], None]]:
    """Begins with what torch's path has to step of parameters whose sums are shared. Returns how that is completed."""
    shared = [i for i in indices if domains.slots[i] >= 0]
    params = params_of(optimizer)
    groups = [group for group in optimizer.param_groups for _ in group["params"]]
    for group in {id(groups[i]): groups[i] for i in shared}.values():
        check_size(group)
    stack.enter_context(new_states(optimizer, [i for i in shared if not optimizer.state.get(params[i])]))
    copied = not all(steps_as_it_is(params[i], optimizer.state[params[i]], groups[i]) for i in shared)
    if copied and share_memory(optimizer, [params[i] for i in shared]):
        refuse_sharing(optimizer)
    second_passes = []
    for i in shared:
        part, second_pass = _first_pass(optimizer, groups[i], params[i], scale)
        where = slice(2 * domains.slots[i], 2 * domains.slots[i] + 2)
        sums[domains.of[i]][where] += part
        second_passes.append(_complete(params[i], second_pass, domains.of[i], where))
    return second_passes


def _first_pass(
    optimizer: Base, group: dict[str, Any], param: Tensor, scale: float
) -> tuple[Tensor, Callable[[Tensor], None]]:
    own = optimizer.state[param]
    wide = None if steps_as_it_is(param, own, group) else InFloat32(optimizer, group, param)
    target = param if wide is None else wide.param
    assert target.grad is not None
    grad = local(target.grad) * (-scale if group["maximize"] else scale)
    state = {name: local(value) for name, value in (own if wide is None else wide.state).items()}
    shape = local(param).shape
    for name, value in {"grad": grad, **state}.items():  # others would broadcast
        if name != "step" and isinstance(value, Tensor) and value.shape != shape:
            raise RuntimeError(
                f"a parameter has shape {list(shape)} on this process and its {name} {list(value.shape)}: "
                "shard both alike"
            )
    rule: Any = optimizer
    part, second_pass = rule._first_pass(group, local(target), grad, state)
    torch.autograd.graph.increment_version([v for v in own.values() if is_dtensor(v)])
    if wide is None:
        return part, second_pass

    def complete(everywhere: Tensor) -> None:
        second_pass(everywhere)
        wide.put_back(wide.state)

    return part, complete


def _complete(
    param: Tensor, second_pass: Callable[[Tensor], None], domain: int, where: slice
) -> Callable[[list[Tensor]], None]:
    @torch.no_grad()
    def complete(sums: list[Tensor]) -> None:
        second_pass(sums[domain][where])
        torch.autograd.graph.increment_version(param)

    return complete
