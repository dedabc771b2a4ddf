"""Reads the gzipped IDX files of the MNIST family.

An IDX file is big-endian: two zero bytes, a type code (8 is unsigned byte), the number of dimensions, each dimension as
a 32-bit integer, then the values in row-major order. Source: http://yann.lecun.com/exdb/mnist/, "the IDX file format".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from fusedopt.data.images import DataError

_UNSIGNED_BYTE = 8


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Reads a gzipped IDX file of bytes.

    Args:
        path: the .gz file; it is read in place, nothing is written.
        dimensions: how many the file must have: 3 for images, 1 for labels.

    Returns:
        uint8 tensor with the file's shape.

    Raises:
        DataError: the file is missing, no gzip file, no IDX file of this kind, or its size does not match its header.
    """
    head = struct.Struct(f">HBB{dimensions}I")
    try:
        with gzip.open(path, "rb") as file:
            header = file.read(head.size)
            if len(header) < head.size:
                raise DataError(f"{path}: truncated within the IDX header; fetch the file again")
            zero, kind, found, *shape = head.unpack(header)
            if (zero, kind, found) != (0, _UNSIGNED_BYTE, dimensions):
                expected = f"0000{_UNSIGNED_BYTE:02x}{dimensions:02x}"
                raise DataError(
                    f"{path}: magic number {header[:4].hex()} where {expected} was expected; "
                    f"this is not an IDX file of bytes with {dimensions} dimension(s)"
                )
            size = math.prod(shape)
            values = bytearray(file.read(size + 1))  # one more than announced, to notice a file that is too long
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the file again") from error
    if len(values) != size:
        comparison = "more" if len(values) > size else f"only {len(values)}"
        raise DataError(f"{path}: {comparison} values where its header announces {size}; fetch the file again")
    if not size:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(values, dtype=torch.uint8).view(shape)
