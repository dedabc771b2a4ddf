"""Pictures that commands write where --out says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_picture(out: Path) -> None:
    """Exits with 1 where a picture could not be written, so that no work is done for nothing."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if out.suffix and out.suffix[1:].lower() not in kinds:
        _refuse(out, f"{out.suffix} is none of {', '.join(sorted(kinds))}")
    if out.is_dir():
        _refuse(out, "it is a folder")
    if not out.parent.is_dir():
        _refuse(out, f"{out.parent} is no folder")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        _refuse(out, "permission denied")


def write(figure: Figure, out: Path) -> None:
    """Writes a picture; exits with 1 where that fails."""
    try:
        figure.savefig(out, dpi=110)
    except (OSError, ValueError) as error:
        _refuse(out, str(error))


def _refuse(out: Path, reason: str) -> None:
    typer.echo(f"fusedopt: {out} cannot be written ({reason}); name another file with --out", err=True)
    raise typer.Exit(1)
