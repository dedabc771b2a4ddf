"""The state of an optimizer as torch's class has it, in dtypes that lose nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from fusedopt.optim._codecs import EXTRAS, decoded, is_coded
from fusedopt.optim._fused import FusedStep

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.complex32: torch.complex64}


def portable_state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's `state_dict` for torch's class, or for ours with other options.

    States of fewer than 4 bytes a number become float32, those of 8 bits too; those of 4 and 8 bytes stay as they are,
    and are not copied. Options and states that torch's class does not know are left out: `state_dtype`, `capturable` of
    SGD and Adagrad, `fused` of classes that have no fused form in torch, the `step` that SGD keeps on a GPU; what
    schedulers and callers have added to groups stays. Velocities of ``SGD(momentum_form="classic")`` become momentum
    buffers of torch's form, by the learning rate of their group.

    So torch.optim's classes load what those of the same name here give. LAMB, LARS, Lion, SWATS and DeltaBarDelta have
    none there: theirs keeps all their own keys but `state_dtype`, and loads into them.
    Loading casts a state to the dtype of its parameter, or to our `state_dtype`.

    Args:
        optimizer: any of fusedopt's; of another class only the dtypes change.

    Returns:
        A dict as `state_dict()` returns it, which `torch.load(..., weights_only=True)` reads.

    Raises:
        ValueError: for classic momentum at a learning rate of 0, by which nothing can be converted.
    """
    saved = optimizer.state_dict()  # its dicts of groups and of parameters are its own, those of states are not
    groups, states = saved["param_groups"], saved["state"]
    if isinstance(optimizer, FusedStep):
        optimizer._to_torch(saved)
        ours = {*optimizer._group_options, *optimizer._own_options}
        groups = [{name: value for name, value in group.items() if name not in ours} for group in groups]
    states = {
        index: {name: _wide(value) for name, value in state.items() if name not in EXTRAS}
        if isinstance(state, dict)
        else state
        for index, state in states.items()
    }
    return {**saved, "state": states, "param_groups": groups}


def _wide(value: Any) -> Any:
    if is_coded(value):
        return decoded(value)
    return value.to(_WIDE[value.dtype]) if isinstance(value, Tensor) and value.dtype in _WIDE else value
