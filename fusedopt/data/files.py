"""Finds the files of a data set: in a folder of the user's, or downloaded once into the cache."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from fusedopt.data.images import DataError

Fetcher = Callable[[str], AbstractContextManager[IO[bytes]]]
"""Opens an address for reading."""

_ALGORITHMS = {32: "MD5", 64: "SHA256"}  # by the number of digits


def open_url(address: str) -> AbstractContextManager[IO[bytes]]:
    """Opens an address with the standard library; gives up when the server is silent for 30 seconds."""
    response: AbstractContextManager[IO[bytes]] = urllib.request.urlopen(address, timeout=30)
    return response


def data_folder(name: str, data_dir: Path | str | None = None) -> Path | None:
    """Returns the folder `name` in `data_dir` or in FUSEDOPT_DATA; None where neither is given."""
    given = data_dir or os.environ.get("FUSEDOPT_DATA")
    return Path(given).expanduser() / name if given else None


def locate(
    name: str,
    sums: Mapping[str, str],
    address: str,
    data_dir: Path | str | None = None,
    fetch: Fetcher = open_url,
    notify: Callable[[str], None] = print,
) -> Path:
    """Returns the folder with a data set's files, all of them there and with the right checksum.

    Args:
        name: of the data set, and of its folder.
        sums: the checksum of each file, by file name: MD5 or SHA-256, in hexadecimal.
        address: where the files can be downloaded, ending in a slash.
        data_dir: a folder that holds the folder `name`; by default the environment variable FUSEDOPT_DATA. Its files
            are read in place, and nothing is ever written there. Where neither is given, missing and damaged files are
            downloaded into the cache, `$XDG_CACHE_HOME/fusedopt` or `~/.cache/fusedopt`.
        fetch: opens an address.
        notify: is told about each download.

    Raises:
        DataError: a file is missing or damaged, or cannot be downloaded.
    """
    folder = data_folder(name, data_dir)
    if folder is not None:
        for file, expected in sums.items():
            check(folder / file, expected)
        return folder
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusedopt" / name
    for file, expected in sums.items():
        path = folder / file
        if not path.is_file() or checksum(path, len(expected)) != expected:
            notify(f"downloading {address}{file} to {folder}")
            download(address + file, path, expected, fetch)
    return folder


def download(address: str, path: Path, expected: str, fetch: Fetcher = open_url) -> None:
    """Downloads a file; `path` appears only once it is complete and verified, whatever happens before.

    The bytes go to a temporary file beside `path`, which is renamed at the end and removed on any failure.

    Raises:
        DataError: the address cannot be read, the folder cannot be written, or the checksum is another.
    """
    advice = "check the network, or name a folder that has the file with --data-dir or FUSEDOPT_DATA"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial_name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); set XDG_CACHE_HOME to a folder that can") from error
    partial = Path(partial_name)
    try:
        with os.fdopen(handle, "wb") as target, fetch(address) as source:
            shutil.copyfileobj(source, target)
        if checksum(partial, len(expected)) != expected:
            name = _ALGORITHMS[len(expected)]
            raise DataError(f"{path}: the download from {address} is truncated or corrupt (wrong {name} sum); {advice}")
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{path}: the download from {address} failed ({error}); {advice}") from error
    finally:
        partial.unlink(missing_ok=True)


def checksum(path: Path, digits: int) -> str:
    """Returns a file's MD5 sum for 32 `digits`, its SHA-256 sum for 64."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(_ALGORITHMS[digits], usedforsecurity=False)).hexdigest()


def check(path: Path, expected: str) -> None:
    """Compares a file with its checksum.

    Raises:
        DataError: the file is missing, cannot be read, or has another checksum.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; put it there, or unset --data-dir and FUSEDOPT_DATA to download it")
    try:
        found = checksum(path, len(expected))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if found != expected:
        name = _ALGORITHMS[len(expected)]
        raise DataError(f"{path}: truncated or corrupt, its {name} sum is {found}, not {expected}; fetch it again")
