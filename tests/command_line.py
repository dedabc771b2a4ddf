"""What tests of commands share: running one in this process, and a small data set."""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fusedopt import cli
from fusedopt.data.fashion_mnist import MD5_SUMS


def run(*arguments: Any, code: int = 0) -> Any:
    """Runs a command, and checks how it exits."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def train(fashion: Path, *arguments: Any, code: int = 0) -> Any:
    """Runs `fusedopt train` on the small Fashion-MNIST, without a report."""
    return run("train", "fashion-mnist", "--data-dir", fashion, "--device", "cpu", "--no-report", *arguments, code=code)


def plain(text: str) -> str:
    """Undoes the box, the colours and the line breaks of a usage error."""
    return " ".join(re.sub(r"\x1b\[[\d;]*m|[│╭╮╰╯─]", " ", text).split())


def write_fashion(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a small Fashion-MNIST, easy to learn: the brightness tells the class."""
    folder = data_dir / "fashion-mnist"
    folder.mkdir()
    for split, count in (("train", 400), ("t10k", 50)):
        labels = torch.arange(count, dtype=torch.uint8) % 10
        images = (labels * 25)[:, None, None].expand(-1, 28, 28).contiguous()
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
            content = gzip.compress(head + values.numpy().tobytes())
            (folder / f"{split}-{kind}-ubyte.gz").write_bytes(content)
            monkeypatch.setitem(MD5_SUMS, f"{split}-{kind}-ubyte.gz", hashlib.md5(content).hexdigest())


class Hide:
    """Pretends that a module is not installed."""

    def __init__(self, module):
        self.module = module

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
