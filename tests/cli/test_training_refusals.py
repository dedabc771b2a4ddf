"""`fusedopt train`, refused: one line, and the folder is as it was."""

import errno
import fcntl
import json
import os
import shutil

import command_line
import pytest
from command_line import plain

from fusedopt.data import make_hands
from fusedopt.tasks import TASKS, Task
from fusedopt.training import RunFolder

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


def train(fashion, *arguments, code=0):
    return command_line.train(fashion, "--batch-size", 100, "--out", "run", *arguments, code=code)


@pytest.fixture
def finished(fashion):
    """A run of two epochs."""
    train(fashion, "--epochs", 2)
    return fashion / "run"


def refused(fashion, *arguments):
    """Returns the line, having checked that nothing was changed."""

    def content():
        return {path: path.read_bytes() for path in (fashion / "run").rglob("*") if path.is_file()}

    before = content()
    (line,) = train(fashion, *arguments, code=1).stderr.splitlines()
    assert content() == before
    return line


def test_a_folder_with_checkpoints_only_stays_as_it_is(fashion, finished):
    for path in finished.iterdir():
        if path.is_file():
            path.unlink()
    assert "holds an earlier run; go on with it by --resume" in refused(fashion)
    assert "2 epochs are in its checkpoints but 0 in its log" in refused(fashion, "--resume")


def test_a_truncated_checkpoint_leaves_the_configuration(fashion, finished):
    path = sorted((finished / "checkpoints").iterdir())[-1]
    path.write_bytes(path.read_bytes()[:-9])
    assert "truncated or corrupt" in refused(fashion, "--epochs", 5, "--resume")


def test_fewer_epochs_than_are_done_are_not_written(fashion, finished):
    assert "holds all of the 2 epochs" in train(fashion, "--epochs", 1, "--resume").stdout
    assert RunFolder.open(finished).config.epochs == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("checkpoints", "has a log but no checkpoints to go on from; restore them, or name another folder"),
        ("log.json", "2 epochs are in its checkpoints but 0 in its log; restore log.json, or name another folder"),
        ("model.pt", "has lost its model.pt; restore it, or name another folder"),
    ],
)
def test_a_run_that_has_lost_something_is_not_gone_on_with(fashion, finished, name, message):
    lost = finished / name
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    assert refused(fashion, "--epochs", 3, "--resume") == f"fusedopt: run: {message}"


def test_a_row_without_an_accuracy_is_refused(fashion, finished):
    log = json.loads((finished / "log.json").read_text())
    del log[0]["test_accuracy"]
    (finished / "log.json").write_text(json.dumps(log))
    assert "log.json: damaged, or of another version" in refused(fashion, "--epochs", 3, "--resume")


def test_a_kill_between_log_and_checkpoint_is_gone_on_from(fashion, finished):
    sorted((finished / "checkpoints").iterdir())[-1].unlink()
    output = train(fashion, "--epochs", 3, "--resume").stdout
    assert "going on after epoch 1 of 3" in output
    assert [row["epoch"] for row in RunFolder.open(finished).rows] == [1, 2, 3]


def test_images_that_the_network_cannot_take_are_a_usage_error(fashion):
    error = plain(train(fashion, "--augment", "pad", code=2).stderr)
    assert "the network cannot take the images" in error
    assert "give another --augment or --model" in error
    assert not (fashion / "run").exists()


def test_another_data_set_is_named_before_other_options(fashion, finished, monkeypatch):
    hands = make_hands(40, 9)
    monkeypatch.setitem(TASKS, "hands", Task(lambda folder, notify: hands, "lenet"))
    options = ("--device", "cpu", "--out", "run", "--resume", "--epochs", 3, "--loss", "mae", "--accumulate", 2)
    error = command_line.run("train", "hands", *options, code=1).stderr
    assert "run: holds another run (dataset is fashion-mnist there and hands here)" in error


def test_a_run_of_another_process_is_left_alone(fashion, finished):
    handle = os.open(finished, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        line = refused(fashion, "--epochs", 3, "--resume")
    finally:
        os.close(handle)
    assert line == "fusedopt: run: is in use by another process; wait for it, or name another folder"


def test_a_refused_run_leaves_no_folder(fashion):
    error = plain(train(fashion, "--schedule", "cosine", "--min-lr", 9, code=2).stderr)
    assert "the lowest learning rate, 9, must be at least 0 and at most the highest" in error
    assert not (fashion / "run").exists()


def test_a_schedule_where_there_was_none_is_named(fashion, finished):
    line = refused(fashion, "--epochs", 3, "--schedule", "cosine", "--resume")
    assert "(schedule is None there and 'cosine' here)" in line


def test_a_file_system_without_locks_is_no_obstacle(fashion, monkeypatch):
    def none(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    train(fashion, "--epochs", 1)
