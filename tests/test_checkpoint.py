"""Checkpoints: what is kept, and that no accident and no file harms what was there before."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import Run
from torch import nn

import fusedopt
from fusedopt import files
from fusedopt.files import FileError
from fusedopt.training import Checkpoint, Position
from fusedopt.training.checkpoint import read

pytestmark = pytest.mark.usefixtures("one_thread")


class State:
    """A number to keep."""

    def __init__(self, value: Any = 0) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    state = State()
    checkpoint = Checkpoint(tmp_path / "a" / "b", keep=2, state=state)
    for step, metric in enumerate([0.1, 0.9, 0.3, float("nan"), 0.9, None]):
        state.value = step
        checkpoint.save(epoch=step // 2, step=step, metric=metric)
    folder = checkpoint.folder
    assert names(folder) == ["000002-step-1-best.pt", "000005-step-4.pt", "000006-step-5.pt"]
    assert checkpoint.load() == Position(2, 5, None, 0.9)
    assert state.value == 5
    assert checkpoint.load("best") == Position(0, 1, 0.9, 0.9)
    assert state.value == 1
    assert checkpoint.load(folder / "000005-step-4.pt") == Position(2, 4, 0.9, 0.9)
    assert state.value == 4
    checkpoint.save(epoch=3, step=6, metric=0.95)
    assert names(folder) == ["000006-step-5.pt", "000007-step-6-best.pt"]
    assert read(folder / "000007-step-6-best.pt") == {"state": {"value": 4}}


def test_nan_is_never_the_best(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, state=State())
    assert checkpoint.save(epoch=0, step=1, metric=float("nan")).name == "000001-step-1.pt"
    assert checkpoint.save(epoch=0, step=2, metric=-1.0).name == "000002-step-2-best.pt"


def test_smaller_may_be_better(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, keep=1, mode="min", state=State())
    for step, metric in enumerate([2.0, 1.0, 3.0]):
        checkpoint.save(epoch=0, step=step, metric=metric)
    assert names(tmp_path) == ["000002-step-1-best.pt", "000003-step-2.pt"]


def test_the_best_is_remembered_over_a_restart(tmp_path: Path) -> None:
    Checkpoint(tmp_path, keep=1, state=State()).save(epoch=0, step=1, metric=0.9)
    resumed = Checkpoint(tmp_path, keep=1, state=State())
    assert resumed.load().best_metric == 0.9
    resumed.save(epoch=0, step=2, metric=torch.tensor(0.8))
    assert names(tmp_path) == ["000001-step-1-best.pt", "000002-step-2.pt"]


def test_an_empty_folder_is_the_beginning(tmp_path: Path) -> None:
    state = State(3)
    checkpoint = Checkpoint(tmp_path / "none", state=state)
    assert checkpoint.load() == checkpoint.load("best") == Position(0, 0, None, None)
    assert state.value == 3
    checkpoint.save(epoch=0, step=1)
    with pytest.raises(FileError, match="no checkpoint was saved with a metric; load the latest"):
        checkpoint.load("best")


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    Checkpoint(tmp_path, keep=1, state=State(1)).save(epoch=0, step=1)
    with pytest.raises(FileError, match="holds checkpoints of an earlier run; resume it, or name another folder"):
        Checkpoint(tmp_path, keep=1, state=State(2)).save(epoch=0, step=1)
    assert names(tmp_path) == ["000001-step-1.pt"]
    state = State()
    Checkpoint(tmp_path, state=state).load()
    assert state.value == 1


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("model.pt", "000001-step-1.txt", ".000009-step-9.pt.partial"):
        (tmp_path / name).write_bytes(b"mine")
    Checkpoint(tmp_path, keep=1, state=State()).save(epoch=0, step=1)
    assert names(tmp_path) == ["000001-step-1.pt", "000001-step-1.txt", "model.pt"]  # but for a torn write


def failing(name: str, at: int, error: int) -> Callable[[pytest.MonkeyPatch], None]:
    """The call number `at` of a function of os fails; a write has written half by then."""
    original, calls = getattr(os, name), 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls - 1 == at:
            if name == "write":
                original(args[0], bytes(args[1])[: len(args[1]) // 2])
            raise OSError(error, os.strerror(error))
        return original(*args, **kwargs)

    return lambda patch: patch.setattr(os, name, call)


FAILURES = [
    *[("write", i, errno.ENOSPC, "No space left on device") for i in range(3)],
    *[("fsync", i, errno.ENOSPC, "No space left on device") for i in range(2)],
    ("open", 0, errno.ENOSPC, "No space left on device"),
    ("write", 1, errno.EDQUOT, "free some space"),
    ("open", 0, errno.EACCES, "make the folder writable"),
    ("open", 0, errno.EROFS, "Read-only file system"),
    ("replace", 0, errno.EROFS, "make the folder writable"),
    ("replace", 0, errno.EACCES, "make the folder writable"),
    ("write", 0, errno.EIO, "check the folder"),
]


@pytest.mark.parametrize(("name", "at", "error", "message"), FAILURES)
def test_a_failed_save_harms_nothing(
    name: str, at: int, error: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run("adamw", "step", tmp_path)
    run.train(3, save=True)
    before = {path: path.read_bytes() for path in run.checkpoint.paths()}
    with monkeypatch.context() as patch:
        failing(name, at, error)(patch)
        with pytest.raises(FileError, match=message) as raised:
            run.checkpoint.save(epoch=0, step=4, metric=1.0)
    assert str(tmp_path) in one_line(raised)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not [name for name in names(tmp_path) if name.endswith("partial")]
    other = Run("adamw", "step", tmp_path)
    other.load()
    assert other.step in ((3, 4) if (name, at) == ("fsync", 1) else (3,))  # that one comes after the rename
    run.checkpoint.save(epoch=0, step=5)  # once there is room again
    other.load()
    assert other.step == 5


def test_a_file_size_limit(tmp_path: Path) -> None:
    state = State(torch.zeros(10))
    checkpoint = Checkpoint(tmp_path, state=state)
    checkpoint.save(epoch=0, step=1)
    state.value = torch.zeros(100_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(FileError, match=r"File too large.*free some space") as error:
            checkpoint.save(epoch=0, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(error)
    assert names(tmp_path) == ["000001-step-1.pt"]
    checkpoint.load()
    assert state.value.shape == (10,)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes wherever it likes")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, state=State())
    checkpoint.save(epoch=0, step=1)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FileError, match="make the folder writable"):
            checkpoint.save(epoch=0, step=2)
    finally:
        tmp_path.chmod(0o700)
    assert checkpoint.load().step == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"cannot be made.*name another folder") as error:
        Checkpoint(tmp_path / "file" / "run", state=State()).save(epoch=0, step=1)
    one_line(error)


def test_an_old_file_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path, keep=1, state=State())
    checkpoint.save(epoch=0, step=1)
    with monkeypatch.context() as patch:
        failing("unlink", 0, errno.EACCES)(patch)
        with pytest.raises(FileError, match="the run is saved, but") as error:
            checkpoint.save(epoch=0, step=2)
    one_line(error)
    assert checkpoint.load().step == 2


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


def parts(model: nn.Module, cls: type[torch.optim.Optimizer] = fusedopt.AdamW, groups: int = 1) -> dict[str, Any]:
    params = list(model.parameters())
    return {"model": model, "optimizer": cls([{"params": params[i::groups]} for i in range(groups)], lr=0.1)}


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


@pytest.mark.parametrize("value", [np.float64(1.5), print, lambda: 0, State(1)])
def test_what_could_not_be_loaded_is_not_saved(value: Any, tmp_path: Path) -> None:
    state = State(1)
    checkpoint = Checkpoint(tmp_path, state=state)
    checkpoint.save(epoch=0, step=1)
    state.value = value
    with pytest.raises(FileError, match="not written, as its content") as error:
        checkpoint.save(epoch=0, step=2)
    one_line(error)
    assert names(tmp_path) == ["000001-step-1.pt"]


def test_torchs_optimizers_and_ours_exchange_checkpoints(tmp_path: Path) -> None:
    ours, theirs = parts(nn.Linear(3, 2)), parts(nn.Linear(3, 2), torch.optim.AdamW)
    ours["model"](torch.ones(3)).sum().backward()
    ours["optimizer"].step()
    Checkpoint(tmp_path, **ours).save(epoch=0, step=1)
    Checkpoint(tmp_path, **theirs).load()
    for p, q in zip(ours["model"].parameters(), theirs["model"].parameters(), strict=True):
        assert torch.equal(ours["optimizer"].state[p]["exp_avg"], theirs["optimizer"].state[q]["exp_avg"])


def test_a_tensor_learning_rate_stays_on_its_device(tmp_path: Path) -> None:
    def build(device: str) -> dict[str, Any]:
        model = nn.Linear(2, 2)
        optimizer = fusedopt.Adam(model.parameters())
        optimizer.param_groups[0]["lr"] = torch.tensor(0.5, device=device)
        return {"model": model, "optimizer": optimizer}

    Checkpoint(tmp_path, **build("cpu")).save(epoch=0, step=1)
    objects = build("meta")  # any device other than the one that files are read to
    Checkpoint(tmp_path, **objects).load()
    assert objects["optimizer"].param_groups[0]["lr"].device.type == "meta"


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Checkpoint(tmp_path, keep=0)
    with pytest.raises(ValueError, match="'max' or 'min'"):
        Checkpoint(tmp_path, mode="best")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="epoch has no state"):
        Checkpoint(tmp_path, epoch=3)  # type: ignore[arg-type]


def test_files_are_flushed_before_they_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("write", "fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=original: (calls.append(n), f(*a))[1])
    files.write_durably(tmp_path / "file", b"one", b"two")
    assert calls == ["write", "write", "fsync", "replace", "fsync"]
    assert (tmp_path / "file").read_bytes() == b"onetwo"
