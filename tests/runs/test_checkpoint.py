"""Checkpoints: what is kept, and that no accident and no file harms what was there before."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import State, names, one_line, parts
from runs import Run
from torch import nn

import fusedopt
from fusedopt import files
from fusedopt.files import FileError
from fusedopt.runs.checkpoint import read
from fusedopt.training import Checkpoint, Position

pytestmark = pytest.mark.usefixtures("one_thread")


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
