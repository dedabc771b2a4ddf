"""`fusedopt plot-schedule`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedopt.cli.errors import one_line_errors
from fusedopt.cli.pictures import check_picture, write


def plot_schedule(
    names: Annotated[list[str], typer.Argument(help="one-cycle, cosine, warmup-stable-decay, ...; `all`, `ours`.")],
    steps: Annotated[int, typer.Option(min=2, max=1_000_000, help="Length of the run.")] = 32,
    max_lr: Annotated[float, typer.Option(help="The highest learning rate.")] = 1e-3,
    min_lr: Annotated[float | None, typer.Option(help="The lowest, where there is one; a tenth by default.")] = None,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("schedule.png"),
) -> None:
    """Draw learning-rate schedules, torch's and this package's."""
    with one_line_errors():
        from fusedopt.schedulers.gallery import GALLERY, OURS, simulate_named
        from fusedopt.schedulers.plot import plot_simulations

        check_picture(out)
        titles = [title for name in names for title in {"all": list(GALLERY), "ours": list(OURS)}.get(name, [name])]
        try:
            low = max_lr / 10 if min_lr is None else min_lr
            simulations = [simulate_named(title, steps, max_lr, low) for title in titles]
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        figure = plot_simulations(titles, simulations)
        write(figure, out)
        typer.echo(f"{out}: {', '.join(titles)}; {steps} steps")
