"""The command line, run in this process."""

import os
import re
import runpy
import struct
import subprocess
import sys

import pytest
import torch
from command_line import Hide, plain, run, write_fashion

import fusedopt
from fusedopt import cli
from fusedopt.data import make_hands
from fusedopt.examples.demo import run_demo
from fusedopt.tasks import TASKS, Task

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    write_fashion(tmp_path, monkeypatch)
    return tmp_path


def test_version_is_that_of_the_package():
    assert run("--version").stdout == f"fusedopt {fusedopt.__version__}\n"


def test_info_prints_what_the_library_says():
    lines = run("info").stdout.splitlines()
    assert lines == [f"{key}: {value}" for key, value in fusedopt.info().items()]


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("tqdm", ["train", "hands"]),
        ("matplotlib", ["demo"]),
        ("matplotlib", ["plot-schedule", "cosine"]),
        ("matplotlib", ["show-augmentations", "hands"]),
    ],
)
def test_missing_extra_is_named(monkeypatch, module, command):
    for name in [n for n in sys.modules if n.startswith(("fusedopt.examples.", f"{module}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hide(module), *sys.meta_path])
    monkeypatch.delitem(sys.modules, module, raising=False)
    (line,) = run(*command, code=1).stderr.splitlines()
    assert line == f"fusedopt: {module} is not installed; pip install 'fusedopt[examples]'"


def test_missing_typer_is_named(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [Hide("typer"), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "typer")
    with pytest.raises(SystemExit, match=r"typer is not installed; pip install 'fusedopt\[examples\]'"):
        runpy.run_path(cli.__file__)


def test_unwritable_folder_of_the_demo_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (line,) = run("demo", "--out", tmp_path / "file", code=1).stderr.splitlines()
    assert line == f"fusedopt: {tmp_path}/file: cannot be made (File exists); name another folder"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_one_line(unbuffered):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fusedopt", "info"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "fusedopt: the output cannot be written (No space left on device); send it elsewhere\n"


def test_demo_prints_the_table_draws_two_pictures_and_reports(tmp_path):
    lines = []
    for _ in range(2):  # the second in the place of the first
        *pictures, page = run_demo(tmp_path / "out", epochs=1, data=make_hands(90, 30), seconds=0, say=lines.append)
    assert page == tmp_path / "out" / "run" / "report.html"
    assert "<html" in page.read_text()
    assert lines[-1] == f"report of the training, with its best epoch: {page}"
    assert tuple(pictures) == (tmp_path / "out" / "training.png", tmp_path / "out" / "step_times.png")
    for picture in pictures:
        content = picture.read_bytes()
        assert content.startswith(b"\x89PNG")
        width, height = struct.unpack(">2I", content[16:24])
        assert width > 900
        assert height > 500
        assert len(content) > 20_000  # an empty canvas of this size is smaller
    output = "\n".join(lines)
    assert f"PyTorch {torch.__version__}" in output
    for name in ("AdamW", "SGD-Nesterov", "RMSprop", "LAMB"):
        assert re.search(rf"^{name}.*\n  fusedopt +[\d.]+ [mµ]?s ", output, re.MULTILINE)


@pytest.fixture
def few_hands(monkeypatch):
    data = make_hands(30, 3)
    monkeypatch.setitem(TASKS, "hands", Task(lambda folder, notify: data, "lenet"))


@pytest.mark.usefixtures("few_hands")
def test_show_augmentations_draws_a_contact_sheet(fashion, tmp_path):
    sheets = {}
    for name, arguments in {
        "all": ["hands"],
        "one": ["hands", "mosaic"],
        "other": ["hands", "mosaic", "--seed", 1],
        "gray": ["fashion-mnist", "flip", "--data-dir", fashion],
    }.items():
        path = tmp_path / f"{name}.png"
        assert str(path) in run("show-augmentations", *arguments, "--out", path).stdout
        sheets[name] = path.read_bytes()
        assert sheets[name].startswith(b"\x89PNG")
    heights = {name: struct.unpack(">2I", content[16:24])[1] for name, content in sheets.items()}
    assert heights["all"] == pytest.approx(7.5 * heights["one"], abs=9)  # 15 rows, with the originals; 2 rows
    assert len({*sheets.values()}) == 4


@pytest.mark.usefixtures("few_hands")
def test_contact_sheet_shows_the_images_above_what_becomes_of_them():
    from fusedopt.examples.contact_sheet import draw_augmentations

    figure = draw_augmentations(lambda: make_hands(20, 10), ["flip", "resize"])
    sides = [axes.images[0].get_array().shape[:2] for axes in figure.axes]
    assert sides == [(28, 28)] * 20 + [(14, 14)] * 10


def test_show_augmentations_names_what_is_wrong(tmp_path):
    message = plain(run("show-augmentations", "hands", "shear", code=2).stderr)
    assert "unknown augmentation 'shear'; choose from pad," in message
    assert "unknown data set 'mnist'" in plain(run("show-augmentations", "mnist", code=2).stderr)
    (line,) = run("show-augmentations", "hands", "flip", "--out", tmp_path / "no" / "x.png", code=1).stderr.splitlines()
    assert line.startswith(f"fusedopt: {tmp_path}/no/x.png cannot be written")
    result = run("show-augmentations", "rps", "--data-dir", tmp_path, code=1)
    assert result.stderr.startswith(f"fusedopt: {tmp_path}/rps/rps.zip: no such file")


def test_parts_of_the_examples_are_imported_when_they_are_asked_for():
    code = """
import sys, fusedopt
assert "fusedopt.training" not in sys.modules
assert fusedopt.training.Settings(ema=0.9).ema == 0.9
assert fusedopt.models.LeNet and fusedopt.data.hold_out
assert not hasattr(fusedopt, "trainings")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "arguments",
    [("find-lr", "hands", "--seed", 2**63), ("find-lr", "hands", "--threads", 100_000), ("demo", "--threads", 100_000)],
)
def test_numbers_that_are_too_large_are_refused(arguments):
    assert f"Invalid value for '{arguments[-2]}'" in run(*arguments, code=2).stderr


@pytest.mark.usefixtures("few_hands", "threads")
@pytest.mark.parametrize("command", ["train", "find-lr", "tune"])
def test_more_threads_than_cores_are_said_to_be(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    options = {"train": ("--epochs", 1, "--no-report"), "find-lr": ("--iterations", 2), "tune": ("--trials", 1)}[
        command
    ]
    arguments = (command, "hands", *options, "--quiet")
    said = "fusedopt: --threads 3 on 2 cores: they wait for each other; fewer are quicker\n"
    assert run(*arguments, "--threads", 3).stderr == said
    assert run(*arguments, "--threads", 2, *(("--out", "b") if command == "train" else ())).stderr == ""
