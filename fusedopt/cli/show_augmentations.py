"""`fusedopt show-augmentations`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedopt.cli.errors import one_line_errors
from fusedopt.cli.pictures import check_picture, write


def show_augmentations(
    dataset: Annotated[str, typer.Argument(help="As in train; hands needs no download.")],
    names: Annotated[list[str] | None, typer.Argument(help="crop, flip, ...; by default all of them.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of what is random.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="As for train.")] = None,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("augmentations.png"),
) -> None:
    """Draw a contact sheet: a row of images, and what each augmentation makes of them."""
    with one_line_errors():
        from fusedopt.examples.contact_sheet import draw_augmentations
        from fusedopt.tasks import find_task

        check_picture(out)
        try:
            figure = draw_augmentations(lambda: find_task(dataset).load(data_dir, typer.echo), names or None, seed)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        write(figure, out)
        typer.echo(f"{out}: {dataset}")
