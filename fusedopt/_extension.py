"""Imports the compiled extension, or says why that is not possible and which command mends it.

PyTorch's C++ interface changes from one minor version to the next. An extension that was built for another one often
does not load, with a message about symbols or libraries, and one that does load must not be trusted.
"""

import importlib
import importlib.machinery
import re
from pathlib import Path

import torch

__all__ = ["BUILT_FOR", "_C"]

_FOLDER = Path(__file__).parent
_MARK = re.compile(rb"fusedopt\._C for torch ([\w.+-]+)")  # csrc/bindings.cpp


def _load() -> str:
    """Imports fusedopt._C and returns the torch that it was built for."""
    try:
        extension = importlib.import_module("fusedopt._C")
        if Path(str(extension.__file__)).parent != _FOLDER:  # by an editable installation of another folder
            raise ImportError(f"{extension.__file__} belongs to another copy")
    except ImportError as error:
        raise ImportError(_reason(str(error)), name="fusedopt._C") from error
    built_for = str(getattr(extension, "BUILT_FOR", "")).rpartition(" ")[2]
    if _minor(built_for) != _minor(torch.__version__):
        raise ImportError(_other_torch(built_for), name="fusedopt._C")
    return built_for


def _reason(failure: str) -> str:
    """Says why the import failed, from what lies in the package's folder."""
    ours = [path for ending in importlib.machinery.EXTENSION_SUFFIXES if (path := _FOLDER / f"_C{ending}").exists()]
    if ours:
        mark = _MARK.search(ours[0].read_bytes())
        built_for = mark[1].decode() if mark else ""
        if built_for != torch.__version__:
            return f"{_other_torch(built_for)} ({failure})"
        return f"fusedopt's extension cannot be loaded ({failure}); build it again: {_command()}"
    others = sorted(_FOLDER.glob("_C.*.so"))
    if others:
        other = f"another Python ({others[0].name})"
        return f"fusedopt's extension was built for {other}; build it for this one: {_command()}"
    return f"fusedopt's extension is not built in {_FOLDER}; build it: {_command()}"


def _other_torch(built_for: str) -> str:
    before = f"torch {built_for}" if built_for else "another version of fusedopt"
    both = f"was built for {before}, but this is torch {torch.__version__}"
    return f"fusedopt's extension {both}; build it again: {_command()}"


def _command() -> str:
    """Returns the command that builds the extension: for an editable installation where this is a source folder."""
    source = _FOLDER.parent
    if (source / "csrc").is_dir() and (source / "setup.py").exists():
        return f"pip install --no-build-isolation --no-deps -e {source}"
    return "pip install --no-build-isolation --no-deps --force-reinstall . (in fusedopt's source folder)"


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


BUILT_FOR = _load()
import fusedopt._C as _C  # noqa: E402, which says less where it fails
