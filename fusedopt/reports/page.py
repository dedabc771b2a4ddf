"""The page of a report: what stands on it, for the template `report.html`."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from fusedopt.reports.evaluation import Evaluation
from fusedopt.reports.figures import COLUMNS
from fusedopt.training import RunFolder

_IN_TITLE = ("dataset", "model", "classes")


class _Png(NamedTuple):
    width: int
    height: int
    uri: str


class _Picture(NamedTuple):
    title: str
    alt: str
    png: _Png
    narrow: _Png | None


def render(run: RunFolder, evaluation: Evaluation, tested: str, parameters: int, narrow: Mapping[str, bytes]) -> str:
    """Returns the page of a run, with the pictures that its folder holds.

    Args:
        run: with its pictures drawn.
        evaluation: of its network.
        tested: what the images are called that were not trained on.
        parameters: how many the network has.
        narrow: PNGs that phones show in the place of pictures, by the pictures' names.
    """
    environment = Environment(
        loader=PackageLoader("fusedopt.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    best = max((row for row in run.rows if "test_accuracy" in row), key=lambda row: row["test_accuracy"], default=None)
    columns = list(dict.fromkeys(name for row in run.rows for name in row))
    return environment.get_template("report.html").render(
        config=run.config,
        tested=tested,
        accuracy=_percent(evaluation.accuracy),
        right=len(evaluation.predicted) - len(evaluation.wrong),
        images=len(evaluation.predicted),
        parameters=parameters,
        pictures=_pictures(run, evaluation, tested, narrow),
        class_accuracy={name: _percent(share) for name, share in evaluation.class_accuracy.items()},
        columns=[_column(name, tested) for name in columns],
        best_epoch=None if best is None else best["epoch"],
        rows=[[_cell(name, row.get(name)) for name in columns] for row in run.rows],
        options={name: _text(value) for name, value in _options(run).items() if value not in (None, {}, ())},
    )


def _options(run: RunFolder) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(run.config) if field.name not in _IN_TITLE]
    return {name.replace("_", " "): getattr(run.config, name) for name in names}


def _pictures(run: RunFolder, evaluation: Evaluation, tested: str, narrow: Mapping[str, bytes]) -> list[_Picture]:
    """Those that are there, in order, with a text for those who cannot see them."""
    shares = ", ".join(f"{name} {_percent(share)}" for name, share in evaluation.class_accuracy.items())
    wrong = len(evaluation.wrong)
    texts = {
        "curves": ("Training", _last_epoch(run, tested)),
        "confusion-matrix": ("Confusion matrix", f"Counts of true against predicted classes. {_confused(evaluation)}"),
        "class-accuracy": ("Accuracy of each class", f"Bars: {shares}."),
        "grad-cam": (
            "What the network looked at when it was wrong",
            f"Of {wrong:,} misclassified {tested} images, some with a heat map of what spoke for the predicted class.",
        ),
        "filters": ("Filters", "The weights of a layer, as pictures."),
        "activations": ("Activations", "What a layer makes of one image of each class, channel by channel."),
        "history": (
            "Gradients and parameters",
            "Their distributions over the steps of the training.",
        ),
    }
    found = {name: run.folder / f"{name}.png" for name in texts}
    return [
        _Picture(*texts[name], _png(path.read_bytes()), _png(narrow[name]) if name in narrow else None)
        for name, path in found.items()
        if path.is_file()
    ]


def _png(content: bytes) -> _Png:
    width, height = struct.unpack(">2I", content[16:24])
    return _Png(width, height, "data:image/png;base64," + base64.b64encode(content).decode())


def _last_epoch(run: RunFolder, tested: str) -> str:
    """The ends of the curves, in words."""
    row = run.rows[-1] if run.rows else {}
    values = [f"{_column(name, tested)} {_cell(name, row[name])}" for name in COLUMNS if name in row]
    return f"Curves over the epochs. After epoch {row.get('epoch')}: {', '.join(values)}."


def _confused(evaluation: Evaluation) -> str:
    """The most frequent mistake, in words."""
    mistakes = evaluation.confusion - evaluation.confusion.diag().diag()
    count = int(mistakes.max())
    if not count:
        return "No image is misclassified."
    true, predicted = divmod(int(mistakes.argmax()), len(evaluation.classes))
    names = f"{evaluation.classes[true]} taken for {evaluation.classes[predicted]}"
    return f"The most frequent mistake: {names}, {count:,} of {int(evaluation.confusion[true].sum()):,}."


def _percent(share: float) -> str:
    return "no images" if math.isnan(share) else f"{100 * share:.2f} %"


def _column(name: str, tested: str) -> str:
    return name.replace("test_", f"{tested} ").replace("_", " ")


def _cell(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return _percent(value) if name.endswith("accuracy") else f"{value:.4g}"


def _text(value: Any) -> str:
    """A value of the configuration for readers."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name} = {_text(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, tuple | list):
        return ", ".join(_text(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
