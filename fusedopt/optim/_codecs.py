"""Numbers in other forms than a tensor of floats, by operations of PyTorch: as the kernels store them, bit for bit."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from fusedopt._extension import _C
from fusedopt.sharding import like, local

if TYPE_CHECKING:
    from typing_extensions import TypeIs  # of typing from Python 3.13 on

REST, MASTER, KEY, AVERAGE = "master_rest", "master", "rounding_key", "average"
EXTRAS = (REST, MASTER, KEY, AVERAGE)  # what a state has beyond that of its torch class
OF_AVERAGE = 5  # the number of the average among the operands

_NAN = 0x7FC00000
_WORD, _LONG = 2**32 - 1, 2**64 - 1

# A state of 8 bits: codes of the parameter's shape and layout, and for each block of them, as they lie in memory, the
# largest magnitude, in float32. A tuple, so that whatever takes it for a tensor fails.
Coded: TypeAlias = "tuple[Tensor, Tensor]"
_MANTISSA = 4  # bits of a code, as csrc/codes.h has it
_SHIFT = 23 - _MANTISSA
_ONE = 0x3F800000


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


def random_bits(like: Tensor, key: int, count: float, operand: int) -> Tensor:
    """16 random bits for each element of a dense tensor, as int32 in its layout.

    Args:
        like: the tensor; its elements are numbered as they lie in memory.
        key: the state's `rounding_key`.
        count: of the step, from 1.
        operand: 0 for the parameter, 2 and up for the states in the rule's order.
    """
    count = 0 if count != count else int(count)  # NaN, of a fake tensor, whose results nobody sees
    step = mixed((key + count * 0x9E3779B97F4A7C15) & _LONG)
    both = mixed((step + (operand + 1) * 0x9E3779B97F4A7C15) & _LONG)
    pair = torch.arange((like.numel() + 1) // 2, device=like.device) & _WORD >> 1
    x = pair ^ (both & _WORD)  # in the lower half of 64 bits
    x = ((x ^ x >> 16) * 0x7FEB352D) & _WORD
    x = ((x ^ x >> 15 ^ both >> 32) * 0x846CA68B) & _WORD
    x = x ^ x >> 16
    return torch.stack((x & 0xFFFF, x >> 16), 1).flatten().to(torch.int32).as_strided(like.shape, like.stride())


def rounded_by_chance(exact: Tensor, key: int, count: float, operand: int) -> Tensor:
    """float32 as the bfloat16 below or above, by chance: the mean of many is the number itself.

    Args:
        exact: the numbers, dense in memory.
        key, count, operand: see :func:`random_bits`.
    """
    return ((_bits(exact) + random_bits(exact, key, count, operand)) >> 16).to(torch.int16).view(torch.bfloat16)


def is_coded(value: Any) -> TypeIs[Coded]:
    """Whether a state is one of 8 bits."""
    if type(value) is not tuple or len(value) != 2 or not all(isinstance(part, Tensor) for part in value):
        return False
    return value[0].dtype in (torch.int8, torch.uint8) and value[1].dtype == torch.float32


def _offset(signed: bool) -> tuple[int, float, float]:
    """The bits from which codes count, the number that these are, and the share of 1 that is above that."""
    first = _ONE - ((127 if signed else 255) << _SHIFT)
    (offset,) = struct.unpack("f", struct.pack("i", first))  # no tensor, which would be on the default device
    return first, offset, 1 - offset


def encoded(exact: Tensor, *, signed: bool, chance: tuple[int, float, int] | None = None) -> Coded:
    """float32, dense in memory, as codes of 8 bits, in int8 or, of what is never negative, in uint8.

    Args:
        exact: the numbers.
        signed: whether some may be negative.
        chance: to round by it: key, count and operand as :func:`random_bits` takes them; else to nearest.
    """
    first, offset, share = _offset(signed)
    exact = exact if torch.ops.aten.is_non_overlapping_and_dense(exact) else exact.contiguous()
    flat = exact.as_strided((exact.numel(),), (1,))
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % _C.BLOCK)).view(-1, _C.BLOCK)
    largest = (blocks.view(torch.int32) & 0x7FFFFFFF).amax(1).view(torch.float32) if flat.numel() else flat
    small = largest < 2.0**-126
    factor = torch.where(small, 0, share / largest)
    moved = (blocks.abs().double() * factor.double()[:, None] + offset).float()  # rounded once, as a multiply-add
    moved = torch.where(moved < 1, moved, 1)
    parts = torch.full_like(flat, 1 << (_SHIFT - 1), dtype=torch.int32)
    if chance is not None:  # the middles of 2^16 parts
        parts = (random_bits(flat, *chance) << (_SHIFT - 16)) + (1 << (_SHIFT - 17))
    counts = (moved.view(torch.int32).view(-1)[: flat.numel()] - first + parts) >> _SHIFT
    if signed:
        codes = torch.where(flat < 0, -counts, counts).to(torch.int8)
    else:
        codes = torch.where(counts == 0, (flat > 0).long(), counts).to(torch.uint8)
    return codes.as_strided(exact.shape, exact.stride()), torch.where(small, 0, largest)


def decoded(coded: Coded) -> Tensor:
    """The numbers of a state of 8 bits in float32, in a new tensor."""
    codes, largest = coded
    signed = codes.dtype == torch.int8
    first, offset, share = _offset(signed)
    flat = codes.as_strided((codes.numel(),), (1,), codes.storage_offset()).int()
    factor = (largest / share).repeat_interleave(_C.BLOCK)[: flat.numel()]
    numbers = (((flat.abs() << _SHIFT) + first).view(torch.float32) - offset) * factor
    return torch.where(flat < 0, -numbers, numbers).as_strided(codes.shape, codes.stride())


def tensors_in(value: Any) -> tuple[Tensor, ...]:
    """The tensors that a state is."""
    return value if is_coded(value) else (value,) if isinstance(value, Tensor) else ()


def share_of_step(decay: float, count: float) -> float:
    """What a parameter gets of its average in step `count`, from 1."""
    return 1.0 if count <= 1 else 1 - min(decay, count / (9 + count))
