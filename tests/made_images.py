"""Image files that are made for a test."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def saved(tmp_path, array, mode=None, name="image.png", **options):
    image = Image.fromarray(np.asarray(array))
    (image.convert(mode) if mode else image).save(tmp_path / name, **options)
    return tmp_path / name


def bomb():
    """A PNG that says it is 65,000 x 65,000 pixels large."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">2I5B", 65_000, 65_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
