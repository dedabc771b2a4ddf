"""Writes the pictures, the numbers and the page of a run into its folder."""

from __future__ import annotations

import io
import json
from pathlib import Path

from matplotlib.figure import Figure

from fusedopt import files
from fusedopt.data import ImageData
from fusedopt.gradients import History
from fusedopt.reports.attributions import attribute_wrong
from fusedopt.reports.evaluation import evaluate
from fusedopt.reports.figures import plot_class_accuracy, plot_confusion, plot_curves
from fusedopt.reports.layers import plot_activations, plot_filters
from fusedopt.reports.page import render
from fusedopt.training import RunFolder

_DPI = 110
_PHONES_DPI = 220  # whose screens have two or three points where others have one


def write_picture(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG, whole or not at all.

    Raises:
        fusedopt.files.FileError: it cannot be written.
    """
    files.write(path, _png(figure, _DPI))


def _png(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    return buffer.getvalue()


def write_report(run: RunFolder, data: ImageData) -> Path:
    """Draws a run and says how good it is: pictures, `metrics.json` and `report.html` in the run's folder.

    The pictures are `curves.png`, `confusion-matrix.png`, `class-accuracy.png`, `grad-cam.png` where test images are
    misclassified, and `history.png` where the folder has `history.pt`: what `fusedopt.capture` recorded, saved with
    `History.save`. Those that are there already are replaced, the filters and activations of `fusedopt explain` too.

    Args:
        run: has its weights.
        data: what it was trained and tested on; see `RunFolder.load_data`.

    Returns:
        The page, which is one file: it needs no other, no network and no script.

    Raises:
        ValueError: there are no test images.
        fusedopt.files.FileError: the run is not complete, or its folder cannot be written.
        ModuleNotFoundError: captum, matplotlib or torchmetrics is not installed.
    """
    tested = "test" if run.config.held_out is None else "held-out"
    model = run.load_model()
    evaluation = evaluate(model, data, run.normalize)
    metrics = {"tested": tested, **evaluation.summary()}
    files.write(run.folder / "metrics.json", (json.dumps(metrics, indent=1, ensure_ascii=False) + "\n").encode())
    drawn = {path.stem for path in run.folder.glob("*.png")}
    history = run.folder / "history.pt"
    wrong = attribute_wrong(model, data, run.normalize, evaluation)
    figures = {
        "curves": plot_curves(run.rows, tested),
        "confusion-matrix": plot_confusion(evaluation),
        "class-accuracy": plot_class_accuracy(evaluation),
        "grad-cam": wrong.plot() if wrong else None,
        "filters": plot_filters(model, run.config.channels, run.config.size) if "filters" in drawn else None,
        "activations": plot_activations(model, data, run.normalize) if "activations" in drawn else None,
        "history": History.load(history).plot() if history.is_file() else None,
    }
    for name, figure in figures.items():
        path = run.folder / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)  # of an earlier report
        else:
            write_picture(figure, path)
    narrow = {
        "curves": plot_curves(run.rows, tested, narrow=True),
        "confusion-matrix": plot_confusion(evaluation, narrow=True),
        "class-accuracy": plot_class_accuracy(evaluation, narrow=True),
        "grad-cam": wrong.plot(narrow=True) if wrong else None,
    }
    on_phones = {name: _png(figure, _PHONES_DPI) for name, figure in narrow.items() if figure is not None}
    page = run.folder / "report.html"
    files.write(page, render(run, evaluation, tested, sum(p.numel() for p in model.parameters()), on_phones).encode())
    return page
