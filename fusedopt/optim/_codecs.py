"""Numbers in other forms than a tensor of floats, by operations of PyTorch: as the kernels store them, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedopt.sharding import like, local

REST, MASTER, KEY, AVERAGE = "master_rest", "master", "rounding_key", "average"
EXTRAS = (REST, MASTER, KEY, AVERAGE)  # what a state has beyond that of its torch class
OF_AVERAGE = 5  # the number of the average among the operands

_NAN = 0x7FC00000
_WORD, _LONG = 2**32 - 1, 2**64 - 1


def _bits(exact: Tensor) -> Tensor:
    """The bits of float32 numbers, of NaN those of one that stays so in the upper half."""
    return exact.view(torch.int32).masked_fill(exact.isnan(), _NAN)


def split(exact: Tensor) -> tuple[Tensor, Tensor]:
    """float32 as the nearest bfloat16, and the lower half of its bits in another tensor of bfloat16.

    (They are no numbers, but collectives do not know integers of 16 bits.)

    Half way between two bfloat16 it is the one farther from 0, unlike in PyTorch's own rounding: then the lower half,
    as a signed number, is what was rounded off, and no two float32 have the same two parts. What rounds to 0 (below
    2^-134) or to infinity becomes that.
    """
    bits = _bits(exact)
    return ((bits + 0x8000) >> 16).to(torch.int16).view(torch.bfloat16), bits.to(torch.int16).view(torch.bfloat16)


def joined(upper: Tensor, rest: Tensor) -> Tensor:
    """The float32 that was split into these two. What is 0 or infinite has no rest."""
    bits = upper.view(torch.int16).to(torch.int32) << 16
    counts = upper.isfinite() & (upper != 0)
    return (bits + torch.where(counts, rest.view(torch.int16).to(torch.int32), 0)).view(torch.float32)


def exact(param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """A parameter in float32 at least: its master weight, where its group has such; a new tensor.

    A float16 that is not the rounding of its master has been set since, and counts.
    """
    param = param.detach()
    rest, master = (state.get(name) if group.get("master_weights") else None for name in (REST, MASTER))
    if rest is not None and param.dtype == torch.bfloat16:
        whole: Tensor = like(param, joined(local(param), local(rest)))
        return whole
    if master is not None and param.dtype == torch.float16:
        return torch.where(master.to(torch.float16) == param, master, param.float())
    return param.to(torch.promote_types(param.dtype, torch.float32), copy=True)


def mixed(x: int) -> int:
    """The last step of SplitMix64, as csrc/random.h has it."""
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _LONG
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _LONG
    return x ^ x >> 31


def rounded_by_chance(exact: Tensor, key: int, count: float, operand: int) -> Tensor:
    """float32 as the bfloat16 below or above, by chance: the mean of many is the number itself.

    Args:
        exact: the numbers, dense in memory.
        key: the state's `rounding_key`.
        count: of the step, from 1.
        operand: 0 for the parameter, 2 and up for the states in the rule's order.
    """
    count = 0 if count != count else int(count)  # NaN, of a fake tensor, whose results nobody sees
    step = mixed((key + count * 0x9E3779B97F4A7C15) & _LONG)
    both = mixed((step + (operand + 1) * 0x9E3779B97F4A7C15) & _LONG)
    numbers = torch.arange(exact.numel(), device=exact.device)
    x = (numbers & _WORD) ^ (both & _WORD)  # in the lower half of 64 bits
    x = ((x ^ x >> 16) * 0x7FEB352D) & _WORD
    x = ((x ^ x >> 15 ^ both >> 32) * 0x846CA68B) & _WORD
    x = (x ^ x >> 16) >> 16
    # The elements are numbered as they lie in memory.
    chance = x.to(torch.int32).as_strided(exact.shape, exact.stride())
    return ((_bits(exact) + chance) >> 16).to(torch.int16).view(torch.bfloat16)


def share_of_step(decay: float, count: float) -> float:
    """What a parameter gets of its average in step `count`, from 1."""
    return 1.0 if count <= 1 else 1 - min(decay, count / (9 + count))
