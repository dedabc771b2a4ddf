"""`fusedopt report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedopt.cli.errors import one_line_errors


def report(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    data_dir: Annotated[Path | None, typer.Option(help="As for train.")] = None,
) -> None:
    """Draw a run: curves, confusion matrix, accuracy of each class, Grad-CAM, and a page that holds them all."""
    with one_line_errors():
        from fusedopt.reports import write_report
        from fusedopt.training import RunFolder

        folder = RunFolder.open(run)
        typer.echo(write_report(folder, folder.load_data(data_dir, typer.echo)))
