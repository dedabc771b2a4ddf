"""`fusedopt demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedopt.cli.checks import THREADS_HELP, use_threads
from fusedopt.cli.errors import one_line_errors


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo-output"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 6,
    threads: Annotated[int, typer.Option(min=1, max=1024, help=THREADS_HELP)] = 1,
) -> None:
    """Learn Rock-Paper-Scissors from drawn hands, time fused against native steps, report on both. Needs no network."""
    with one_line_errors():
        from fusedopt.examples.demo import run_demo

        use_threads(threads)
        run_demo(out, epochs, say=typer.echo)
