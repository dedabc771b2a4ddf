"""The files of `fusedopt tune --study`: any name, what is no study, and a disk that is full."""

import os

import pytest
from command_line import run

optuna = pytest.importorskip("optuna", reason="optuna is not installed")

from sqlalchemy import event  # noqa: E402, optuna brings it
from sqlalchemy.engine import Engine  # noqa: E402

from fusedopt.data import make_hands  # noqa: E402
from fusedopt.files import FileError  # noqa: E402
from fusedopt.tasks import TASKS, Task  # noqa: E402
from fusedopt.tuning import Search, finished, make_space, open_study, search  # noqa: E402

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


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


SEARCH = Search("hands", "random", make_space(("lr=1e-4..0.05", "batch-size=16")), epochs=1)
NAMES = ("a?b.db", "a%20b.db", "a#b.db", "a{b}.db", ":memory:", "file:a.db?mode=memory", "\udcff.db")


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_the_name_of_a_study(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_study(SEARCH, name) as study:
        assert len(list(search.run(study, SEARCH, make_hands(30, 3), 1))) == 1
    assert sorted(os.listdir()) == sorted([name, f"{name}.lock"])
    with open_study(SEARCH, name) as study:
        assert finished(study) == 1


def test_a_study_is_in_use_under_all_of_its_names(tmp_path):
    path, link = tmp_path / "study.db", tmp_path / "link.db"
    link.symlink_to(path)
    with open_study(SEARCH, path), pytest.raises(FileError, match=r"link\.db: is in use"), open_study(SEARCH, link):
        pass


@pytest.mark.parametrize("kind", ["folder", "pipe", "text", "loop"])
def test_what_is_no_study_is_refused_and_nothing_left_beside_it(kind, tmp_path):
    path = tmp_path / "study"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "text":
        path.write_text("something else" * 99)
    else:
        path.symlink_to(path)
    with pytest.raises(FileError, match=r"study: cannot be used as a study \(.*\); name"), open_study(SEARCH, path):
        pass
    assert os.listdir(tmp_path) == ["study"]
