"""Writing a file so that it is there whole, or not at all."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a file that survives a crash at any moment: `path` holds what it held before, or all of the new content.

    The bytes go to `.<name>.partial` beside it, which is flushed to the disk and renamed; then the directory is
    flushed. One process at a time writes a path.

    Args:
        path: the file; its folder must exist.
        parts: the content, in pieces.

    Raises:
        OSError: it cannot be written; the partial file is gone, and `path` is as it was (or, where flushing the folder
            is what failed, whole and new).
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for part in parts:
                rest = memoryview(part)
                while rest:
                    rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(partial, path)
        _flush_folder(path.parent)
    except OSError:
        _remove_quietly(partial)
        raise


def _flush_folder(folder: Path) -> None:
    """Makes a rename in a folder durable, where the system lets folders be opened."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(handle)


def _remove_quietly(path: Path) -> None:
    with suppress(OSError):  # the error that is on its way says more
        path.unlink(missing_ok=True)
