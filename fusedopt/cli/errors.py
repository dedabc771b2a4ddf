"""What the user can put right, said in one line."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

from fusedopt.extras import MODULES, missing

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints what the user can put right as one line and exits with 1; other errors are bugs, with a traceback."""
    from fusedopt.data import DataError
    from fusedopt.files import FileError

    try:
        yield
    except (DataError, FileError) as error:
        typer.echo(f"fusedopt: {error}", err=True)
    except ModuleNotFoundError as error:
        if error.name not in MODULES:
            raise
        typer.echo(f"fusedopt: {missing(error.name)}", err=True)
    else:
        return
    raise typer.Exit(1)


@contextmanager
def output_errors() -> Iterator[None]:
    """Exits with 1 and a line where what is printed cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:  # errors of files have their names
            raise
        with suppress(OSError):
            typer.echo(f"fusedopt: the output cannot be written ({error.strerror}); send it elsewhere", err=True)
        if sys.stdout is not None:  # what is left in it would be tried again at Python's end, and complained about
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
