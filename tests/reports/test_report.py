"""The report on a run: its numbers, its pictures, and the page."""

from __future__ import annotations

import base64
import dataclasses
import errno
import json
import math
import os
import shutil
import struct

import pytest
import torch
from html_page import Page
from run_folders import config_of, hide, make_run, network, run_command, small_hands
from torch import nn
from trajectory import record_steps

from fusedopt.data import ImageData, Normalize, hold_out, make_hands
from fusedopt.gradients import capture
from fusedopt.models import HandClassifier
from fusedopt.tasks import TASKS, Task
from fusedopt.training import RunFolder, make_optimizer, predict

pytest.importorskip("captum", reason="captum is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from fusedopt.reports import evaluate, plot_class_accuracy, plot_confusion, plot_curves, write_report

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="  # a PNG
EXPLAINED = {"filters.png", "activations.png"}
PICTURES = {"curves.png", "confusion-matrix.png", "class-accuracy.png", "grad-cam.png"}


@pytest.fixture(scope="module")
def data():
    return small_hands()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    return make_run(tmp_path_factory.mktemp("finished") / "run", data)


@pytest.fixture
def run(finished, tmp_path):
    """A run of one's own."""
    shutil.copytree(finished.folder, tmp_path / "run")
    return RunFolder.open(tmp_path / "run")


class Known(nn.Module):
    """Says what it was told, whatever the images are."""

    def __init__(self, labels: torch.Tensor, classes: int) -> None:
        super().__init__()
        self.scores = nn.functional.one_hot(labels, classes).float()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scores


def known_evaluation():
    labels = torch.tensor([0, 0, 0, 2, 2])
    predicted = torch.tensor([0, 0, 2, 2, 1])
    images = torch.zeros(5, 1, 2, 2, dtype=torch.uint8)
    data = ImageData("known", ("a", "b", "c"), images, labels, images, labels)
    return evaluate(Known(predicted, 3), data, Normalize(images))


def test_evaluation_counts_right_and_wrong():
    evaluation = known_evaluation()
    assert evaluation.confusion.tolist() == [[2, 0, 1], [0, 0, 0], [0, 1, 1]]  # true in rows
    assert evaluation.wrong.tolist() == [2, 4]
    assert evaluation.accuracy == 0.6
    assert evaluation.class_accuracy == {"a": pytest.approx(2 / 3), "b": pytest.approx(math.nan, nan_ok=True), "c": 0.5}
    summary = json.loads(json.dumps(evaluation.summary(), allow_nan=False))
    assert summary["class_accuracy"]["b"] is None
    assert summary["confusion_matrix"] == evaluation.confusion.tolist()


def test_evaluation_needs_test_images(data):
    none = dataclasses.replace(data, test_images=data.test_images[:0], test_labels=data.test_labels[:0])
    with pytest.raises(ValueError, match="hands holds no test images"):
        evaluate(HandClassifier(), none, Normalize(data.train_images))


def test_curves_are_those_of_the_log():
    rows = [
        {"epoch": 1, "train_loss": 2.0, "test_accuracy": 0.5, "lr": 1.0},
        {"epoch": 2, "train_loss": math.nan, "test_accuracy": 0.75, "train_accuracy": 0.8, "lr": 1e-3},
    ]
    loss, accuracy, rate = plot_curves(rows, "held-out").axes
    assert [line.get_xydata().tolist() for line in accuracy.lines] == [[[2, 80]], [[1, 50], [2, 75]]]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["training", "held-out"]
    assert loss.lines[0].get_ydata()[0] == 2
    assert loss.get_legend() is None
    assert rate.get_yscale() == "log"
    assert loss.get_yscale() == "linear"
    assert not loss.yaxis.get_major_formatter().get_useOffset()
    assert len(plot_curves([{"epoch": 1, "lr": 0.1}]).axes) == 1
    assert plot_curves([{"epoch": 1, "seconds": 2.0}]) is None
    assert plot_curves([]) is None


def test_confusion_matrix_shows_its_counts():
    (axes,) = plot_confusion(known_evaluation()).axes
    shown = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "2", (0, 2): "1", (2, 1): "1", (2, 2): "1"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    right, wrong = (image.get_array() for image in axes.images)  # each with its colour, and nothing where there is none
    assert right.mask.tolist() == [[False, True, True], [True, True, True], [True, True, False]]
    assert wrong.mask.tolist() == [[True, True, False], [True, True, True], [True, False, True]]


def test_class_accuracy_shows_classes_without_images():
    (axes,) = plot_class_accuracy(known_evaluation()).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a  66.7 %", "b  no images", "c  50.0 %"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([200 / 3, 0, 50])


def test_report_writes_pictures_numbers_and_a_page(run, data):
    page = write_report(run, data)
    assert page == run.folder / "report.html"
    assert {path.name for path in run.folder.glob("*.png")} == PICTURES
    metrics = json.loads((run.folder / "metrics.json").read_text())
    right = int((predict(run.load_model(), data.test_images, run.normalize) == data.test_labels).sum())
    assert 0 < right < 18
    assert metrics["accuracy"] == right / 18
    assert metrics["accuracy"] == pytest.approx(run.rows[-1]["test_accuracy"])
    assert metrics["tested"] == "test"
    text = Page(page.read_text(encoding="utf-8")).text
    assert f"test images right {right} of 18" in text
    assert f"test accuracy {100 * right / 18:.2f} %" in text
    assert "lenet on hands 44,131 parameters; 3 classes: paper, rock, scissors" in text
    assert "batch size 16" in text
    assert f"best epoch {max(run.rows, key=lambda row: row['test_accuracy'])['epoch']} of 2" in text
    assert f"{run.rows[1]['train_loss']:.4g}" in text


def test_page_is_complete_by_itself(run, data):
    content = write_report(run, data).read_text(encoding="utf-8")
    page = Page(content)
    assert not page.all("script")
    assert "http:" not in content
    assert "https:" not in content
    assert "url(" not in content
    assert "prefers-color-scheme: dark" in content
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("title")) == 1
    assert len(page.all("h1")) == 1
    pictures = page.all("img")
    assert len(pictures) == 4
    for picture in pictures:
        kind, _, coded = picture["src"].partition(",")
        decoded = base64.b64decode(coded)
        assert kind == "data:image/png;base64"
        assert struct.unpack(">2I", decoded[16:24]) == (int(picture["width"]), int(picture["height"]))
        assert len(picture["alt"]) > 20
    confused = pictures[1]["alt"]
    assert "The most frequent mistake: " in confused
    row = run.rows[-1]
    assert pictures[0]["alt"] == (
        f"Curves over the epochs. After epoch 2: train loss {row['train_loss']:.4g}, "
        f"train accuracy {100 * row['train_accuracy']:.2f} %, "
        f"test accuracy {100 * row['test_accuracy']:.2f} %, lr 0.001."
    )


def test_a_log_with_gaps_is_shown(run, data):
    run.append({"epoch": 3, "step_seconds": math.nan})
    page = Page(write_report(run, data).read_text(encoding="utf-8"))
    assert page.text.count(" 3 - - - - - ") == 1
    assert "best epoch" in page.text


def test_names_cannot_become_markup(tmp_path, data):
    names = ("<script>alert(1)</script>", '"rock"', "a & b")
    named = dataclasses.replace(data, classes=names)
    config = config_of(named, epochs=0, settings={"<b>": "<i>", "unset": None})
    run = RunFolder.create(tmp_path, config)
    run.save_model(network(config))
    page = Page(write_report(run, named).read_text(encoding="utf-8"))
    assert not page.all("script")
    assert not page.all("b")
    assert '<script>alert(1)</script>, "rock", a & b' in page.text
    assert "<b> = <i>" in page.text
    assert "unset" not in page.text


def test_a_report_replaces_an_earlier_one(run, data):
    write_report(run, data)
    labels = predict(run.load_model(), data.test_images, run.normalize)
    run.rows = []
    for name in ("filters", "activations"):  # of fusedopt explain, when the weights were others
        (run.folder / f"{name}.png").write_bytes(base64.b64decode(DOT))
    page = Page(write_report(run, dataclasses.replace(data, test_labels=labels)).read_text())
    assert {path.name for path in run.folder.glob("*.png")} == EXPLAINED | {
        "confusion-matrix.png",
        "class-accuracy.png",
    }
    assert all(int(picture["width"]) > 400 for picture in page.all("img"))
    assert "No test image is misclassified." in page.text
    assert "test accuracy 100.00 %" in page.text


def test_recorded_gradients_are_drawn(run, data):
    model = run.load_model()
    with capture(model, layers=["conv1"]) as history:
        record_steps(model, make_optimizer("sgd", model.parameters()), data, steps=3)
    history.save(run.folder / "history.pt")
    page = Page(write_report(run, data).read_text())
    assert {path.name for path in run.folder.glob("*.png")} == PICTURES | {"history.png"}
    assert "Gradients and parameters" in page.text


@pytest.fixture
def hands(monkeypatch, data):
    monkeypatch.setitem(TASKS, "hands", Task(lambda folder, notify: data, HandClassifier))


@pytest.mark.usefixtures("hands")
def test_command_writes_the_report(run):
    assert run_command("report", run.folder).stdout == f"{run.folder / 'report.html'}\n"
    assert (run.folder / "report.html").is_file()


@pytest.mark.usefixtures("hands")
def test_held_out_images_are_called_so(run, data):
    held = make_run(run.folder.parent / "held", hold_out(data, 0.25), held_out=0.25, epochs=1)
    run_command("report", held.folder)
    text = Page((held.folder / "report.html").read_text()).text
    assert "held-out accuracy " in text
    assert "of 24" in text
    assert json.loads((held.folder / "metrics.json").read_text())["tested"] == "held-out"


@pytest.mark.usefixtures("hands")
def test_what_cannot_be_reported_is_one_line(run, monkeypatch):
    def refused(*arguments):
        (line,) = run_command("report", *arguments, code=1).stderr.splitlines()
        return line

    assert "holds no run" in refused(run.folder.parent)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, content: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        assert "metrics.json: cannot be written" in refused(run.folder)
    hide("captum", monkeypatch)
    assert refused(run.folder) == "fusedopt: captum is not installed; pip install 'fusedopt[examples]'"
    (run.folder / "model.pt").unlink()
    assert "the run has lost its model.pt; restore it" in refused(run.folder)


def test_data_of_another_kind_are_refused(run, monkeypatch):
    other = dataclasses.replace(make_hands(6, 6), classes=("a", "b", "c"))
    monkeypatch.setitem(TASKS, "hands", Task(lambda folder, notify: other, HandClassifier))
    assert "other classes or images than those of the run" in run_command("report", run.folder, code=1).stderr
