"""`fusedopt bench`."""

import dataclasses
import json

import pytest
import torch
from command_line import plain, run
from comparisons import comparison

from fusedopt.benchmark import measuring
from fusedopt.benchmark.timing import Spread

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path, threads):
    monkeypatch.setattr(measuring, "copy_bandwidth", lambda meter: 1e10)
    monkeypatch.chdir(tmp_path)


def test_a_table_json_and_a_picture(tmp_path):
    (tmp_path / "small_nets.py").write_text("from torch import nn\ndef small():\n    return nn.Linear(6, 3)\n")
    options = ("--optimizer", "AdamW", "--optimizer", "sgd", "--batch", 2, "--input", "6", "--threads", 1)
    done = run("bench", "small_nets:small", *options, "--seconds", 1, "--json", "all.json", "--plot", "all.png")
    assert done.stdout.startswith("small_nets:small: 21 parameters in 2 tensors, float32\n")
    assert "training, batches of 2" in done.stdout
    assert done.stderr.splitlines()[:2] == ["timing a copy", "timing steps of AdamW"]
    found = json.loads((tmp_path / "all.json").read_text())
    assert list(dict.fromkeys(row["optimizer"] for row in found["rows"])) == ["AdamW", "SGD"]
    assert found["machine"]["torch"] == torch.__version__
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")


def test_shapes_one_implementation_another_dtype():
    done = run("bench", "3*8", "--optimizer", "SGD", "--implementation", "fused", "--dtype", "bfloat16", "--quick")
    assert done.stdout.startswith("3*8: 24 parameters in 3 tensors, bfloat16\n")
    assert "PyTorch fused" in done.stdout
    assert "foreach" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere:net"], "there is no module nowhere; is it installed"),
        (["3*8", "--optimizer", "x"], "unknown optimizer 'x'; choose among AdamW"),
        (["3*8", "--dtype", "half8"], "torch has no dtype 'half8'"),
        (["3*8", "--batch", "2"], "a whole training step needs a model"),
        (["3*8", "--input", "3,4"], "is no shape such as 3x224x224"),
        (["3*8", "--device", "cuda"], "torch sees no GPU here"),
        (["3*8", "--device", "gpu"], "--device is cpu or cuda, not gpu"),
    ],
)
def test_refusals(arguments, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message in plain(run("bench", *arguments, code=2).stderr)


def test_results_that_cannot_be_written(tmp_path):
    arguments = ("3*8", "--optimizer", "SGD", "--seconds", 0, "--json", tmp_path / "no" / "all.json")
    done = run("bench", *arguments, code=1)
    assert "PyTorch fused" in done.stdout, "the table is not lost"
    assert "all.json cannot be written" in plain(done.stderr)
    (tmp_path / "good.json").touch()
    done = run("bench", *arguments[:-1], tmp_path / "good.json", "--plot", tmp_path / "picture.nothing", code=1)
    assert "picture.nothing cannot be written" in plain(done.stderr)
    assert json.loads((tmp_path / "good.json").read_text())


@pytest.mark.parametrize(("high", "limit"), [(1.5, None), (2.0, None), (50.0, 2.5)])
def test_whiskers_end_within_the_axes_unless_they_lie_far_out(tmp_path, high, limit):
    both = comparison(batch=None)
    rows = [dataclasses.replace(row, seconds=Spread(0.02, 0.01, 0.02 * high)) for row in both.rows]
    axes = dataclasses.replace(both, rows=tuple(rows)).plot(tmp_path / "x.png").axes[0]
    ends = [float(segment[:, 0].max()) for collection in axes.collections for segment in collection.get_segments()]
    assert ends == pytest.approx([20 * high] * 3)  # milliseconds
    if limit is None:
        assert max(ends) < axes.get_xlim()[1] < 1.2 * max(ends)
    else:
        assert axes.get_xlim()[1] == pytest.approx(limit * 20)
