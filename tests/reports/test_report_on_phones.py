"""The report on a phone: pictures of their own, whose letters can be read without scrolling."""

from __future__ import annotations

import base64
import struct

import pytest
from run_folders import make_run, small_hands

pytest.importorskip("captum", reason="captum is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from html_page import Page

from fusedopt.reports import attribute_wrong, evaluate, plot_curves, write_report

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def data():
    return small_hands()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    return make_run(tmp_path_factory.mktemp("finished") / "run", data)


def test_phones_get_pictures_of_their_own(finished, data):
    page = Page(write_report(finished, data).read_text(encoding="utf-8"))
    sources, pictures = page.all("source"), page.all("img")
    assert [source["media"] for source in sources] == ["(max-width: 40rem)"] * 4
    for source, picture in zip(sources, pictures, strict=True):
        content = base64.b64decode(source["srcset"].partition(",")[2])
        size = struct.unpack(">2I", content[16:24])
        assert size == (int(source["width"]), int(source["height"]))
        assert size[0] == 880  # of which a phone shows 4 inches: letters are as large as the text's
        assert source["srcset"] != picture["src"]
    assert int(sources[0]["height"]) > int(sources[0]["width"]), "the curves stand below each other"
    assert len(page.all("picture")) == 4
    boxes = [box["aria-label"] for box in page.all("div") if box.get("class") == "wide"]
    assert boxes == ["Epochs"], "what is scrolled has no picture for phones"


def test_narrow_pictures_have_fewer_columns(finished, data):
    rows = [{"epoch": 1, "train_loss": 2.0, "test_accuracy": 0.5, "lr": 1.0}]
    for narrow, columns in ((False, 3), (True, 1)):
        figure = plot_curves(rows, narrow=narrow)
        assert len({round(axes.get_subplotspec().colspan.start) for axes in figure.axes}) == columns
    model = finished.load_model()
    evaluation = evaluate(model, data, finished.normalize)
    wrong = attribute_wrong(model, data, finished.normalize, evaluation)
    for narrow, columns in ((False, 5), (True, 2)):
        figure = wrong.plot(narrow=narrow)
        assert figure.axes[0].get_gridspec().ncols == columns
