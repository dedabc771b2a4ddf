"""Files that are no checkpoints of this run: each is refused in one line, and changes nothing."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import State, one_line, parts
from runs import Run
from torch import nn

import fusedopt
from fusedopt.files import FileError
from fusedopt.runs.checkpoint import read
from fusedopt.training import Checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def sealed(payload: bytes, head: bytes = b"fusedopt checkpoint 1\n") -> bytes:
    return head + payload + hashlib.sha256(head + payload).digest()


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def torch_file(content: Any, folder: Path) -> bytes:
    torch.save(content, folder / "content")
    return (folder / "content").read_bytes()


FOREIGN: dict[str, tuple[Callable[[bytes, Path], bytes], str]] = {
    "empty": (lambda good, _: b"", "not a fusedopt checkpoint"),
    "text": (lambda good, _: b"hello\n" * 99, "not a fusedopt checkpoint"),
    "torch.save": (lambda good, tmp: torch_file({}, tmp), "not a fusedopt checkpoint"),
    "history": (lambda good, tmp: sealed(torch_file({}, tmp), b"fusedopt history 1\n"), "not a fusedopt checkpoint"),
    "newer": (lambda good, _: sealed(b"", b"fusedopt checkpoint 2\n"), "of format 2, not 1"),
    "head only": (lambda good, _: good[:22], "truncated or corrupt"),
    "sealed nonsense": (lambda good, _: sealed(b"nonsense"), "do not trust it"),
    "sealed stump": (lambda good, _: sealed(good[22:-999]), "do not trust it"),
    "sealed list": (lambda good, tmp: sealed(torch_file([1, 2], tmp)), "not the content of a checkpoint"),
    "sealed dict": (lambda good, tmp: sealed(torch_file({"objects": {}}, tmp)), "not the content of a checkpoint"),
    "code": (lambda good, tmp: sealed(torch_file(Evil(tmp / "evil"), tmp)), "could run code; do not trust it"),
    "code, old format": (lambda good, tmp: sealed(pickle.dumps(Evil(tmp / "evil"))), "do not trust it"),
    "bare code": (lambda good, tmp: pickle.dumps(Evil(tmp / "evil")), "not a fusedopt checkpoint"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_checkpoint_changes_nothing(kind: str, tmp_path: Path) -> None:
    make, message = FOREIGN[kind]
    refused(lambda good: make(good, tmp_path), message, tmp_path)
    assert not (tmp_path / "evil").exists()


def refused(damage: Callable[[bytes], bytes], message: str, folder: Path) -> None:
    """Damages the newer of two checkpoints: it is refused, the run is as before, and the older one loads."""
    run = Run("adam", "one-cycle", folder / "run")
    run.train(2, save=True)
    older, newer = run.checkpoint.paths()
    newer.write_bytes(damage(newer.read_bytes()))
    run.train(4)
    reference = Run("adam", "one-cycle", folder / "none")
    reference.train(4)
    expected = reference.digest()
    run = Run("adam", "one-cycle", folder / "run")
    run.train(4)
    with pytest.raises(FileError, match=message) as error:
        run.checkpoint.load()
    assert str(newer) in one_line(error)
    assert run.digest() == expected
    assert run.checkpoint.load(older).step == 1


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = Checkpoint(tmp_path, state=State(torch.arange(9.0))).save(epoch=0, step=1)
    good = path.read_bytes()
    for length in [*range(0, len(good), 97), *range(len(good) - 40, len(good))]:
        path.write_bytes(good[:length])
        with pytest.raises(FileError, match=r"truncated or corrupt|not a fusedopt checkpoint"):
            read(path)


def test_any_bit_flipped(tmp_path: Path) -> None:
    path = Checkpoint(tmp_path, state=State(torch.arange(9.0))).save(epoch=0, step=1)
    good = path.read_bytes()
    for at in [*range(24), *range(24, len(good), 61), *range(len(good) - 40, len(good))]:
        path.write_bytes(flipped(good, at))
        with pytest.raises(FileError):
            read(path)
    path.write_bytes(good)
    assert torch.equal(read(path)["state"]["value"], torch.arange(9.0))


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, state=State())
    with pytest.raises(FileError, match=r"No such file.*name a file that can") as error:
        checkpoint.load(tmp_path / "none.pt")
    one_line(error)
    with pytest.raises(FileError, match="Is a directory"):
        checkpoint.load(tmp_path)
    with pytest.raises(ValueError, match="'latest', 'best' or a Path, not 'newest'"):
        checkpoint.load("newest")  # type: ignore[arg-type]


OTHERS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "larger": (lambda: parts(nn.Linear(4, 3)), r"of another model: weight is torch.float32 \(2, 3\) there"),
    "half": (lambda: parts(nn.Linear(3, 2).bfloat16()), "torch.float32.*there and torch.bfloat16"),
    "without bias": (lambda: parts(nn.Linear(3, 2, bias=False)), "the model has no bias"),
    "deeper": (lambda: parts(nn.Sequential(nn.Linear(3, 2))), "0.bias is missing in the file; build the model"),
    "optimizer": (lambda: parts(nn.Linear(3, 2), fusedopt.LAMB), "optimizer is a AdamW there and a LAMB here"),
    "groups": (lambda: parts(nn.Linear(3, 2), groups=2), "not of this run .optimizer: .*number of parameter groups"),
    "more": (lambda: {**parts(nn.Linear(3, 2)), "scheduler": State()}, "this run has model, optimizer, scheduler"),
    "fewer": (lambda: {"model": nn.Linear(3, 2)}, "holds model, optimizer; this run has model; give"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_checkpoint_of_another_run_changes_nothing(kind: str, tmp_path: Path) -> None:
    saved = parts(nn.Linear(3, 2))
    saved["model"](torch.ones(3)).sum().backward()
    saved["optimizer"].step()
    Checkpoint(tmp_path, **saved).save(epoch=0, step=1)
    make, message = OTHERS[kind]
    objects = make()
    before = [value.clone() for value in objects["model"].state_dict().values()]
    random_before = torch.get_rng_state()
    with pytest.raises(FileError, match=message) as error:
        Checkpoint(tmp_path, **objects).load()
    one_line(error)
    assert all(map(torch.equal, objects["model"].state_dict().values(), before))
    assert not objects["optimizer"].state if "optimizer" in objects else True
    assert torch.equal(torch.get_rng_state(), random_before)
    assert Checkpoint(tmp_path, **parts(nn.Linear(3, 2))).load().step == 1


def test_a_load_that_fails_late_is_undone(tmp_path: Path) -> None:
    class Fussy(State):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            if state["value"] == 1:
                raise ValueError("not a 1")
            super().load_state_dict(state)

    def build(value: int) -> dict[str, Any]:
        return {**parts(nn.Linear(3, 2)), "first": State(value), "fussy": Fussy(value)}

    Checkpoint(tmp_path, **build(1)).save(epoch=0, step=1)
    torch.rand(1)
    objects = build(2)
    weights, random_before = objects["model"].weight.clone(), torch.get_rng_state()
    with pytest.raises(FileError, match=r"not of this run .fussy: not a 1."):
        Checkpoint(tmp_path, **objects).load()
    assert (objects["first"].value, objects["fussy"].value) == (2, 2)
    assert torch.equal(objects["model"].weight, weights)
    assert torch.equal(torch.get_rng_state(), random_before)
