"""Any mixture of shapes, layouts, dtypes, groups and missing gradients, against the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import BY_NAME, DTYPES, F64, HALVES
from closeness import Closeness
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = [pytest.mark.steps, pytest.mark.one_torch]

NAMES = ["sgd-decay", "sgd-nesterov-decay", "sgd-dampening-fast", "rmsprop-centered-momentum-decay", "rmsprop-fast"]
NAMES += ["adagrad-lr-decay-decay", "adam-decay", "adam-amsgrad-fast", "adamw-fast", "lamb-l2-decay", "lamb-fast"]
NAMES += ["sgd-classic-nesterov-fast", "delta-bar-delta-decay", "delta-bar-delta-momentum-fast", "swats-decay"]
LAYOUTS = ["contiguous", "transposed", "channels-last", "sliced", "expanded-slice"]


def laid_out(values: Tensor, layout: str) -> Tensor:
    """A copy with other strides; the sliced ones are not dense."""
    if layout == "transposed":
        return (
            values.movedim(0, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 0)
            if values.dim()
            else values
        )
    if layout == "channels-last" and values.dim() in (4, 5):
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return values.clone(memory_format=formats[values.dim()])
    if layout == "sliced" and values.dim():
        buffer = torch.full((*values.shape[:-1], 2 * values.shape[-1] + 1), 9, dtype=values.dtype)
        return buffer[..., 1::2].copy_(values)
    if layout == "expanded-slice" and values.dim():
        buffer = torch.full((values.shape[0] + 2, *(n + 1 for n in values.shape[1:])), 9, dtype=values.dtype)
        return buffer[(slice(1, -1), *(slice(0, n) for n in values.shape[1:]))].copy_(values)
    return values.clone()


@dataclass
class Spec:
    """One parameter and what happens to it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    grad_layouts: list[str | None]
    """Of each step; None where there is no gradient."""
    group: int

    def numbers(self, scale: float) -> Tensor:
        sign = torch.randint(0, 2, self.shape) * 2 - 1
        return ((1 + 3 * torch.rand(self.shape, dtype=F64)) * sign * scale).to(self.dtype)


STEPS = 4
specs = st.builds(
    Spec,
    shape=st.lists(st.integers(0, 6), max_size=5).map(tuple),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    grad_layouts=st.lists(st.sampled_from([*LAYOUTS, None, None]), min_size=STEPS, max_size=STEPS),
    group=st.integers(0, 2),
)
rates = st.lists(
    st.fixed_dictionaries(
        {}, optional={"lr": st.sampled_from([0.0, 0.01, 0.3]), "weight_decay": st.sampled_from([0.0, 0.2])}
    ),
    min_size=3,
    max_size=3,
)


@settings(max_examples=400)
@given(
    name=st.sampled_from(NAMES), specs=st.lists(specs, min_size=1, max_size=6), rates=rates, seed=st.integers(0, 2**32)
)
def test_any_mixture(name: str, specs: list[Spec], rates: list[dict[str, Any]], seed: int) -> None:
    torch.manual_seed(seed)
    for spec in specs:
        # On torch's path LAMB and SWATS round after each operation, as the plain ones that they are held against, but
        # other ones; and SWATS takes it with all of a group.
        rounds = (name.startswith("lamb") and spec.dtype in HALVES) or name.startswith("swats")
        if rounds and "slice" in spec.layout:
            spec.layout = "transposed"
    params = [laid_out(spec.numbers(0.25), spec.layout) for spec in specs]
    groups = [([i for i, spec in enumerate(specs) if spec.group == g], rates[g]) for g in range(3)]
    # torch's fused forms compute wrong updates where layouts differ, and refuse what comes late: the for-loop judges.
    run = Closeness(BY_NAME[name], params, groups=[group for group in groups if group[0]], forms=["for-loop"])
    for step in range(STEPS):
        grads = [
            None if layout is None else laid_out(spec.numbers(1), layout)
            for spec, layout in ((spec, spec.grad_layouts[step]) for spec in specs)
        ]
        run.step(grads, paths=("fused", "torch", "none"))
        if step == 1:
            run.reload()
        order = [i for indices, _ in run.groups for i in indices]
        for i, explanation in zip(order, run.ours.explain(), strict=True):
            if step != 1:
                dense = params[i].numel() == 0 or torch.ops.aten.is_non_overlapping_and_dense(params[i])
                expected = "none" if grads[i] is None else "fused" if dense else "torch"
                assert explanation.path == expected, explanation
    for spec, p in zip(specs, params, strict=True):
        counted = run.ours.state.get(p, {}).get("step")
        if counted is not None:
            assert counted == sum(layout is not None for layout in spec.grad_layouts)
