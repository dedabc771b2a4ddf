"""`fusedopt find-lr`: its options, its picture and its words."""

import re

import pytest
import torch
from typer.testing import CliRunner

from fusedopt import cli, tasks
from fusedopt.data.images import ImageData
from fusedopt.examples import find_lr as example

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def small(monkeypatch):
    """A small data set in the place of Fashion-MNIST: the brightness tells the class."""
    labels = torch.arange(400) % 10
    images = (labels * 25).to(torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28).contiguous()
    data = ImageData("bright", tuple("0123456789"), images, labels, images, labels)
    monkeypatch.setitem(tasks.TASKS, "fashion-mnist", tasks.Task(lambda *_: data, "mlp3", channels=1, classes=10))
    return data


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, ["find-lr", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize("options", [("--model", "lenet"), ("--model", "mlp"), ()], ids=str)
def test_command_prints_suggestions_and_writes_the_picture(small, tmp_path, options):
    out = tmp_path / "curve.png"
    output = run("fashion-mnist", *options, "--optimizer", "sgd", "--out", out, "--quiet").stdout
    model = options[1] if options else "mlp3"  # that of the data set
    suggested = re.search(r"suggested learning rate: (\S+) \(minimum\)", output)
    assert suggested is not None
    found = example.find_on(small, model, "sgd")
    assert suggested[1] == f"{found.suggestion:.2e}"
    for method, lr in found.suggestions.items():
        assert f"{method:<9} {lr:.2e}" in output
    for method in found.refusals:
        assert f"{method:<9} none: " in output
    assert out.read_bytes().startswith(b"\x89PNG")


def test_command_with_a_range_that_finds_nothing(small, tmp_path):
    out = tmp_path / "curve.png"
    output = run("fashion-mnist", "--end-lr", "1e-6", "--iterations", 20, "--out", out, "--quiet").stdout
    (line,) = re.findall("no suggested learning rate.*", output)  # and not one a method
    assert line == "no suggested learning rate: the loss never falls; raise --end-lr"
    assert "none: " not in output
    assert out.exists()


def test_command_says_that_it_tried_again(small, tmp_path, monkeypatch):
    find = example.find_on
    monkeypatch.setattr(example, "find_on", lambda *args, **options: find(*args, **{**options, "start_lr": 1e-4}))
    output = run("fashion-mnist", "--optimizer", "sgd", "--out", tmp_path / "x.png", "--quiet").stdout
    assert output.startswith("the curve from 1.0e-07 on is flat for too long: tried again from 1.0e-04 on\n")
    output = run("fashion-mnist", "--start-lr", 1e-4, "--out", tmp_path / "x.png", "--quiet").stdout
    assert "tried again" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "alexnet"], "choose one of lenet, lenet-bn"),
        (["--optimizer", "adamm"], "unknown optimizer"),
        (["--start-lr", "20"], "--end-lr must be larger"),
    ],
)
def test_command_refuses_wrong_arguments(small, tmp_path, arguments, message):
    result = run("fashion-mnist", "--out", tmp_path / "x.png", *arguments, code=2)
    assert message in re.sub(r"[\s│]+", " ", result.stderr)
    assert not (tmp_path / "x.png").exists()


def refuse_to_load(*_):
    pytest.fail("the data were read before --out was looked at")


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("missing/x.png", "missing is no folder"),
        ("x.tiff2", ".tiff2 is none of"),
        (".", "it is a folder"),
        ("file/x.png", "file is no folder"),
    ],
)
@pytest.mark.parametrize("command", [("find-lr", "fashion-mnist"), ("show-augmentations", "fashion-mnist", "flip")])
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(monkeypatch, tmp_path, command, out, reason):
    monkeypatch.setitem(tasks.TASKS, "fashion-mnist", tasks.Task(refuse_to_load, "mlp3"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = CliRunner().invoke(cli.app, [*command, "--out", out])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"fusedopt: {out} cannot be written ({reason}")
    assert line.endswith("name another file with --out")


def test_a_result_is_told_in_a_line(small):
    found = example.find_on(small, "mlp3", "sgd")
    assert repr(found) == (
        f"LRFinderResult({len(found.lrs)} learning rates from 1.00e-07 to {found.lrs[-1]:.2e}: {found.stopped}; "
        f"suggestion: {found.suggestion:.2e} (minimum))"
    )
    nothing = example.find_on(small, "mlp3", "sgd", end_lr=1e-6, num_iter=20)
    assert repr(nothing).endswith("to 1.00e-06: completed; suggestion: none (minimum))")
    assert repr(small) == "ImageData('bright': 400 training and 400 test images of 1x28x28, 10 classes)"


def test_command_speaks_of_its_own_options_and_draws_no_bar_into_files(small, tmp_path):
    result = run("fashion-mnist", "--iterations", 5, "--end-lr", 1e-5, "--out", tmp_path / "x.png")
    assert result.stderr == ""
    assert result.stdout.count("it takes at least 17; use more --iterations, a lower --start-lr\n") == 1


@pytest.mark.parametrize(
    "arguments", [("--iterations", 17), ("--iterations", 20, "--end-lr", 1e-6), ("--start-lr", -1)]
)
def test_refusals_are_in_the_words_of_the_command(small, tmp_path, arguments):
    output = run("fashion-mnist", *arguments, "--out", tmp_path / "x.png", code=2 if -1 in arguments else 0).output
    assert re.search("--(start|end)-lr", output)
    assert not re.search(r"num_iter|diverge_th|smooth_f|skip_|step_mode|start_lr|end_lr|\(\)", output)
