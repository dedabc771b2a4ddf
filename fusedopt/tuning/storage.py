"""The SQLite files that studies of optuna's are kept in."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError  # optuna brings it
from sqlalchemy.pool import QueuePool

from fusedopt.files import FileError


def storage_of(path: Path) -> RDBStorage:
    """Opens the SQLite file of a study, or makes one.

    Raises:
        fusedopt.files.FileError: it holds something else, or cannot be read or made.
    """
    real = study_file(path)
    with _usable(path):
        # The path does not go through a URL, where ?, %, :memory: and others have a meaning.
        connect = partial(sqlite3.connect, real, timeout=60, check_same_thread=False)
        return RDBStorage("sqlite://", {"creator": connect, "poolclass": QueuePool})


def study_file(path: Path) -> Path:
    """Returns what is behind a path that may be a link: a study, or nothing yet; raises FileError for all else."""
    with _usable(path):
        real = path.resolve()
        if real.exists() and not real.is_file():
            raise OSError("it is a folder" if real.is_dir() else "it is no file")
        if real.is_file() and real.stat().st_size:
            with closing(sqlite3.connect(f"{real.as_uri()}?mode=ro", uri=True)) as connection:
                connection.execute("SELECT study_name FROM studies")
    return real


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Says in one line that there cannot be a study."""
    try:
        yield
    except (OSError, sqlite3.Error, SQLAlchemyError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise FileError(f"{path}: cannot be used as a study ({reason}); name another file with --study") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in one line that the study cannot be written, wherever in the block that turns out."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError, sqlite3.Error) as error:
        first: BaseException = error
        while isinstance(first.__cause__, Exception):
            first = first.__cause__
        reason = str(first).splitlines()[0]
        raise FileError(f"{path}: cannot be written ({reason}); free some space, then repeat the command") from error
