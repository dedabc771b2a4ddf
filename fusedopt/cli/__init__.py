"""The command line: `fusedopt train`, `find-lr`, `demo`, ...; a module for each command.

Each command imports what it needs, so that `fusedopt --help` is quick and a missing extra only stops the commands that
need it.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

from fusedopt.extras import missing

try:
    import typer
except ModuleNotFoundError as error:  # the commands are declared with it, so there is no command line without it
    raise SystemExit(f"fusedopt: {missing('typer')}") from error

from fusedopt.cli import (
    bench,
    demo,
    explain,
    export,
    find_lr,
    info,
    plot_schedule,
    predict,
    report,
    run,
    show_augmentations,
    train,
    tune,
)
from fusedopt.cli.errors import output_errors

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # not of the package itself, which imports torch

        typer.echo(f"fusedopt {version('fusedopt')}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Fused optimizers for PyTorch: train, see, measure."""


for _command in (
    *(train.train, find_lr.find_lr, tune.tune, demo.demo),
    *(report.report, explain.explain, predict.predict, export.export),
    *(show_augmentations.show_augmentations, plot_schedule.plot_schedule, info.info),
    bench.bench,
):
    app.command()(_command)
app.command(context_settings=run.SCRIPTS_OWN)(run.run)


def main() -> None:
    """The entry point of the `fusedopt` command."""
    if sys.argv[1:2] == ["run"]:  # nothing comes between Python and the script
        from fusedopt.running import main as run_script

        return run_script(sys.argv[2:])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name that is no text is printed byte for byte
    with output_errors():
        app()
