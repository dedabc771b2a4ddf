"""Exported networks: whole, checked, and of use without this package."""

from __future__ import annotations

import json

import pytest
import torch
from command_line import plain
from run_folders import config_of, hide, make_run, network, run_command, small_hands
from torch import nn

from fusedopt.files import FileError
from fusedopt.inference import export, export_onnx, export_pt2
from fusedopt.training import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    return small_hands(9)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    return make_run(tmp_path_factory.mktemp("finished") / "run", data, epochs=1)


@pytest.fixture
def onnx():
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return pytest.importorskip("onnx", reason="onnx is not installed")


def scores(run, images):
    with torch.no_grad():
        return run.load_model()(run.normalize(images))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_program_takes_pixels_of_any_number(run, data, dtype, tmp_path):
    difference = export_pt2(run, tmp_path / "model.pt2", dtype)
    assert difference < 1e-4
    extra = {"classes.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert json.loads(extra["classes.json"]) == ["paper", "rock", "scissors"]
    for count in (1, 9):
        images = data.test_images[:count]
        close(program(images if dtype == torch.uint8 else images / 255), scores(run, images))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_onnx_model_takes_pixels_of_any_number(run, data, dtype, tmp_path, onnx):
    import onnxruntime

    path = tmp_path / "model.onnx"
    assert export_onnx(run, path, dtype) < 1e-4
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]  # the weights are in it
    (classes,) = [p.value for p in onnx.load(path).metadata_props if p.key == "classes"]
    assert json.loads(classes) == ["paper", "rock", "scissors"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 9):
        images = data.test_images[:count]
        fed = images if dtype == torch.uint8 else images / 255
        close(torch.from_numpy(session.run(None, {"images": fed.numpy()})[0]), scores(run, images))


@pytest.mark.parametrize(("name", "options"), [("resnet9", {"width": 2}), ("mlp3", {})], ids=str)
def test_every_kind_of_network_is_exported(name, options, data, tmp_path, onnx):
    run = RunFolder.create(tmp_path, config_of(data, model=name, model_options=options))
    run.save_model(network(run.config))
    assert export_onnx(run, tmp_path / "model.onnx") < 1e-3


class Wrong(nn.Module):
    """Takes the pixels without normalization."""

    def __init__(self, network, normalize, dtype):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images / 255)


@pytest.mark.parametrize("name", ["pt2", "onnx"])
def test_what_disagrees_is_not_written(name, run, tmp_path, monkeypatch, request):
    if name == "onnx":
        request.getfixturevalue("onnx")
    path = tmp_path / f"model.{name}"
    path.write_text("earlier")
    monkeypatch.setattr(export, "_Pixels", Wrong)
    with pytest.raises(
        FileError, match=r"not written, as the exported network's scores differ by [\d.]+ from the run's"
    ):
        export.FORMATS[name](run, path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(path.name, "earlier")]


def test_nan_is_a_disagreement(run, tmp_path, monkeypatch):
    class Nan(Wrong):
        def forward(self, images):
            return self.network(images / 255) * torch.nan

    monkeypatch.setattr(export, "_Pixels", Nan)
    with pytest.raises(FileError, match="differ by nan"):
        export_pt2(run, tmp_path / "model.pt2")


def test_other_dtypes_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"images must be torch.uint8 or torch.float32, not torch.int64"):
        export_pt2(run, tmp_path / "model.pt2", torch.int64)


def test_command_writes_and_says_how_well_they_agree(run, tmp_path, onnx):
    output = run_command("export", run.folder, "--out", tmp_path).stdout.splitlines()
    assert [line.partition(":")[0] for line in output] == [str(tmp_path / "model.pt2"), str(tmp_path / "model.onnx")]
    assert all(float(line.rpartition("max difference ")[2]) < 1e-4 for line in output)
    run_command("export", run.folder, "--format", "pt2", "--dtype", "float32")
    program = torch.export.load(run.folder / "model.pt2").module()
    assert program(torch.zeros(3, 3, 28, 28)).shape == (3, 3)


def test_command_names_what_is_wrong(run, tmp_path, monkeypatch):
    message = plain(run_command("export", run.folder, "--format", "pt2,tflite", code=2).stderr)
    assert "unknown format 'tflite'; choose from pt2, onnx" in message
    assert "unknown dtype 'int8'" in plain(run_command("export", run.folder, "--dtype", "int8", code=2).stderr)
    assert "holds no run" in run_command("export", tmp_path, code=1).stderr
    (tmp_path / "model.pt2").mkdir()
    result = run_command("export", run.folder, "--format", "pt2", "--out", tmp_path, code=1)
    assert result.stderr.startswith(f"fusedopt: {tmp_path}/model.pt2: cannot be written")
    hide("onnxruntime", monkeypatch)
    (line,) = run_command("export", run.folder, "--format", "onnx", code=1).stderr.splitlines()
    assert line == "fusedopt: onnxruntime is not installed; pip install 'fusedopt[examples]'"


def test_command_makes_the_folder(run, tmp_path):
    new = tmp_path / "a" / "b"
    assert f"{new}/model.pt2: agrees" in run_command("export", run.folder, "--format", "pt2", "--out", new).stdout
    assert (new / "model.pt2").exists()
    (tmp_path / "file").write_bytes(b"")
    result = run_command("export", run.folder, "--format", "pt2", "--out", tmp_path / "file", code=1)
    assert result.stderr == f"fusedopt: {tmp_path}/file: cannot be made (File exists); name another folder\n"
    assert export_pt2(run, str(tmp_path / "c" / "m.pt2")) < 1e-3
