"""Files of tensors and plain values that are there whole or not at all, and are verified when they are read."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from fusedopt.plain import foreign_part, pack, unpack

_VERSION = 1
_DIGEST_BYTES = hashlib.sha256().digest_size


class FileError(RuntimeError):
    """A file cannot be written, or is not what it should be; the message names it and says what to do."""


def save(path: Path, kind: str, content: Any) -> None:
    """Writes a file: a line with its kind and version, what `torch.save` makes of the content, and a SHA-256 of both.

    Needs as much host memory as the file is long. Nothing is written before the content has been found loadable.

    Args:
        path: the file; its folder must exist. One process at a time writes it.
        kind: one word, for instance "checkpoint".
        content: tensors, numbers, strings, and lists, tuples and dictionaries of them; NumPy's as well, see
            `fusedopt.plain.pack`.

    Raises:
        FileError: the content could not be loaded again, or the file cannot be written. What was there before is
            still there.
    """
    buffer, content = io.BytesIO(), pack(content)
    try:
        torch.save(content, buffer)
        buffer.seek(0)
        foreign = get_unsafe_globals_in_checkpoint(buffer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        part = foreign_part(content, "content") or f"what cannot be saved ({error})"
        raise FileError(f"{path}: not written, as {unloadable(part)}") from error
    if foreign:
        part = foreign_part(content, "content") or f"{', '.join(sorted(foreign))} in its content"
        raise FileError(f"{path}: not written, as {unloadable(part)}")
    # Nothing is copied; with a view of the buffer in a cycle of garbage, Python 3.12.1's collector crashes.
    head, payload = _head(kind), buffer.getvalue()
    digest = hashlib.sha256(head)
    digest.update(payload)
    write(path, head, payload, digest.digest())


def unloadable(part: str) -> str:
    """Words an error about a part of a content, see `fusedopt.plain.foreign_part`."""
    return f"{part}, which could not be loaded without running code; make it a tensor or a plain number, string or list"


def load(path: Path, kind: str) -> Any:
    """Reads and verifies what `save` wrote, with all tensors on the CPU. Code in the file is not run.

    Raises:
        FileError: it is missing, of another kind, truncated, corrupt, or holds more than tensors and plain values.
    """
    head = _head(kind)
    try:
        with path.open("rb") as file:
            found = file.readline(100)
            size = os.fstat(file.fileno()).st_size - len(found) - _DIGEST_BYTES
            payload, digest = file.read(max(size, 0)), file.read(_DIGEST_BYTES)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({_reason(error)}); name a file that can") from error
    if not found.startswith(head.rpartition(b" ")[0] + b" "):
        raise FileError(f"{path}: not a fusedopt {kind}; name a file that fusedopt saved as one")
    if found != head:
        version = found.decode("ascii", "replace").split()[-1]
        raise FileError(
            f"{path}: a {kind} of format {version}, not {_VERSION}; load it with the fusedopt that saved it"
        )
    if hashlib.sha256(found + payload).digest() != digest:
        raise FileError(
            f"{path}: truncated or corrupt, its checksum is wrong; remove it and load an older one or a copy"
        )
    try:
        return unpack(torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        text = f"{path}: not loaded, as it holds more than tensors and plain values and could run code; do not trust it"
        raise FileError(text) from error
    except Exception as error:  # the checksum is right, so somebody made it so: torch.load may stumble in any way
        raise FileError(f"{path}: not a fusedopt {kind} in spite of its checksum; do not trust it") from error


def write(path: Path, *parts: bytes) -> None:
    """Writes a file as `write_durably` does, and says in one line why where it cannot.

    Raises:
        FileError: it cannot be written; what was there before is still there.
    """
    try:
        write_durably(path, *parts)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({_reason(error)}); {_advice(error)}") from error


def write_durably(path: Path, *parts: bytes) -> None:
    """Writes a file that survives a crash at any moment: `path` holds what it held before, or all of the new content.

    The bytes go to `.<name>.partial` beside it, which is flushed to the disk and renamed; then the folder is flushed.

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
        flush_folder(path.parent)
    except OSError:
        with suppress(OSError):  # the error that is on its way says more
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path, in_use: str, advice: str) -> Iterator[None]:
    """Keeps other processes out of the block, for as long as this one lives.

    Args:
        path: a folder, which nothing is written into, or a file, which is made where it is missing and left there.
        in_use: what to say where another process is in such a block.
        advice: what to do where the path cannot be opened.

    Raises:
        FileError: another process is in such a block, or the path cannot be opened.
    """
    if os.name == "nt":  # has no such locks
        yield
        return
    import fcntl

    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_WRONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({_reason(error)}); {advice}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileError(in_use) from error
        except OSError:  # a network file system that has no locks, or none of folders
            pass
        yield
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Makes the renames and removals in a folder durable, where the system has a way to."""
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


def _head(kind: str) -> bytes:
    return f"fusedopt {kind} {_VERSION}\n".encode()


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space or name a folder on another disk; what was there before is unchanged"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make the folder writable or name another one; what was there before is unchanged"
    return "check the folder or name another one; what was there before is unchanged"
