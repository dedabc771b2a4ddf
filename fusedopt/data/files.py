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


def open_url(address: str) -> AbstractContextManager[IO[bytes]]:
    """Opens an address with the standard library; gives up when the server is silent for 30 seconds."""
    response: AbstractContextManager[IO[bytes]] = urllib.request.urlopen(address, timeout=30)
    return response


def locate(
    name: str,
    md5_sums: Mapping[str, str],
    address: str,
    data_dir: Path | str | None = None,
    fetch: Fetcher = open_url,
    notify: Callable[[str], None] = print,
) -> Path:
    """Returns the folder with a data set's files, all of them there and with the right MD5 sum.

    Args:
        name: of the data set, and of its folder.
        md5_sums: the MD5 sum of each file, by file name.
        address: where the files can be downloaded, ending in a slash.
        data_dir: a folder that holds the folder `name`; by default the environment variable FUSEDOPT_DATA. Its files
            are read in place, and nothing is ever written there. Where neither is given, missing and damaged files are
            downloaded into the cache, `$XDG_CACHE_HOME/fusedopt` or `~/.cache/fusedopt`.
        fetch: opens an address.
        notify: is told about each download.

    Raises:
        DataError: a file is missing or damaged, or cannot be downloaded.
    """
    given = data_dir or os.environ.get("FUSEDOPT_DATA")
    if given:
        folder = Path(given).expanduser() / name
        for file, md5 in md5_sums.items():
            _check(folder / file, md5)
        return folder
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusedopt" / name
    for file, md5 in md5_sums.items():
        path = folder / file
        if not path.is_file() or _md5(path) != md5:
            notify(f"downloading {address}{file} to {folder}")
            download(address + file, path, md5, fetch)
    return folder


def download(address: str, path: Path, md5: str, fetch: Fetcher = open_url) -> None:
    """Downloads a file; `path` appears only once it is complete and verified, whatever happens before.

    The bytes go to a temporary file beside `path`, which is renamed at the end and removed on any failure.

    Raises:
        DataError: the address cannot be read, the folder cannot be written, or the MD5 sum is another.
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
        if _md5(partial) != md5:
            raise DataError(f"{path}: the download from {address} is truncated or corrupt (wrong MD5 sum); {advice}")
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{path}: the download from {address} failed ({error}); {advice}") from error
    finally:
        partial.unlink(missing_ok=True)


def _check(path: Path, md5: str) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file; put it there, or unset --data-dir and FUSEDOPT_DATA to download it")
    try:
        found = _md5(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if found != md5:
        raise DataError(f"{path}: truncated or corrupt, its MD5 sum is {found}, not {md5}; fetch the file again")


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
