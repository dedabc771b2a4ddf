"""The state of an optimizer as torch's class has it, in dtypes that lose nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from fusedopt.optim._fused import FusedStep
from fusedopt.replacement import torchs_own

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.complex32: torch.complex64}


def portable_state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's `state_dict`, to go on with in torch's class, or in any other form of ours.

    States of fewer than 4 bytes a number become float32; those of 4 and 8 stay as they are, and are not copied. Options
    and states that torch's class does not know are left out: `state_dtype`, `capturable` of SGD and Adagrad, `fused` of
    RMSprop, the `step` that SGD keeps on a GPU; what schedulers and callers have added to groups stays. Velocities of
    ``SGD(momentum_form="classic")`` become momentum buffers of torch's form, by the learning rate of their group.

    So `torch.optim.SGD`, `RMSprop`, `Adagrad`, `Adam` and `AdamW` load what their classes here give. LAMB, SWATS and
    DeltaBarDelta have none in torch.optim: theirs keeps all their own keys but `state_dtype`, and loads into them.
    Whoever loads a state casts it to the dtype of its parameter, or to the `state_dtype` of ours.

    Args:
        optimizer: any of fusedopt's; of another class only the dtypes change.

    Returns:
        A dict as `state_dict()` returns it, which `torch.load(..., weights_only=True)` reads.

    Raises:
        ValueError: for classic momentum at a learning rate of 0, by which nothing can be converted.
    """
    saved = optimizer.state_dict()
    saved = {**saved, "param_groups": [dict(group) for group in saved["param_groups"]], "state": dict(saved["state"])}
    if isinstance(optimizer, FusedStep):
        optimizer._to_torch(saved)
        foreign = _foreign_keys(optimizer)
        saved["param_groups"] = [{k: v for k, v in g.items() if k not in foreign} for g in saved["param_groups"]]
    for index, state in saved["state"].items():
        if isinstance(state, dict):
            saved["state"][index] = {name: _wide(value) for name, value in state.items()}
    return saved


def _foreign_keys(optimizer: FusedStep) -> set[str]:
    """The options of a group that torch's class does not have; with no such class, those that are no rule's."""
    theirs = optimizer._torch_class
    ours = {*optimizer._group_options, *optimizer._own_options}
    if theirs.__module__.partition(".")[0] != "torch":
        return ours
    return ours - torchs_own(theirs, [nn.Parameter(torch.empty(0, device="cpu"))]).defaults.keys()


def _wide(value: Any) -> Any:
    return value.to(_WIDE[value.dtype]) if isinstance(value, Tensor) and value.dtype in _WIDE else value
