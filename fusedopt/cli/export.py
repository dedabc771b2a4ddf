"""`fusedopt export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedopt.cli.errors import one_line_errors


def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    formats: Annotated[str, typer.Option("--format", help="pt2 (torch.export), onnx, or both.")] = "pt2,onnx",
    dtype: Annotated[str, typer.Option(help="Of the images: uint8, from 0 to 255, or float32, from 0 to 1.")] = "uint8",
    out: Annotated[Path | None, typer.Option(help="Folder for the files; by default the run's.")] = None,
) -> None:
    """Write the network for use elsewhere: pixel values [N, C, H, W] to scores [N, classes], for any N.

    What is written has been compared with the run's network on random images, and agrees with it.
    """
    with one_line_errors():
        import torch

        from fusedopt.inference import FORMATS
        from fusedopt.training import RunFolder

        dtypes = {"uint8": torch.uint8, "float32": torch.float32}
        if dtype not in dtypes:
            raise typer.BadParameter(f"unknown dtype {dtype!r}; choose from {', '.join(dtypes)}")
        names = formats.split(",")
        if unknown := [name for name in names if name not in FORMATS]:
            raise typer.BadParameter(f"unknown format {unknown[0]!r}; choose from {', '.join(FORMATS)}")
        folder = RunFolder.open(run)
        for name in names:
            path = (out or run) / f"model.{name}"
            difference = FORMATS[name](folder, path, dtypes[dtype])
            typer.echo(f"{path}: agrees with the run's network, max difference {difference:.2g}")
