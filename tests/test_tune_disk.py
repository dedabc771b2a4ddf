"""`fusedopt tune` on a disk that is full."""

import pytest
from command_line import run

optuna = pytest.importorskip("optuna", reason="optuna is not installed")

from sqlalchemy import event  # noqa: E402, optuna brings it
from sqlalchemy.engine import Engine  # noqa: E402

from fusedopt.data import make_hands  # noqa: E402
from fusedopt.examples.tasks import TASKS, Task  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    hands = make_hands(30, 3)
    monkeypatch.setitem(TASKS, "hands", Task(lambda folder, notify: hands, "lenet"))
    path = tmp_path / "study.db"
    options = ("tune", "hands", "--method", "random", "--epochs", 1, "--study", path)
    run(*options, "--trials", 1)

    def full(connection, record):
        connection.execute("PRAGMA max_page_count=1")  # as large as it is

    event.listen(Engine, "connect", full)
    try:
        (line,) = run(*options, "--trials", 300, code=1).stderr.splitlines()
    finally:
        event.remove(Engine, "connect", full)
    advice = "free some space, then repeat the command"
    assert line == f"fusedopt: {path}: cannot be written (database or disk is full); {advice}"
