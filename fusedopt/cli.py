"""The command line: `fusedopt train`, `find-lr`, `plot-schedule`, `demo`, `info`; others in `fusedopt.commands`.

Each command imports what it needs, so that `fusedopt --help` is quick and a missing extra only stops the commands that
need it.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# One by default: small networks gain little by more, and the results would depend on the number of cores.
_THREADS_HELP = "CPU threads; networks as small as these gain little by more than one."
_EXTRAS = (
    *("typer", "tqdm", "matplotlib", "PIL", "jinja2", "torchmetrics", "tensorboard", "captum", "optuna"),
    *("onnx", "onnxscript", "onnxruntime"),
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def _missing_extra(name: str) -> str:
    return f"fusedopt: {name} is not installed; pip install 'fusedopt[examples]'"


try:
    import typer
except ModuleNotFoundError as error:  # the commands are declared with it, so there is no command line without it
    raise SystemExit(_missing_extra("typer")) from error

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _write(figure: Figure, out: Path) -> None:
    try:
        figure.savefig(out, dpi=110)
    except (OSError, ValueError) as error:
        typer.echo(f"fusedopt: {out} cannot be written ({error}); name another file with --out", err=True)
        raise typer.Exit(1) from error


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints what the user can put right as one line and exits with 1; other errors are bugs, with a traceback."""
    from fusedopt.data import DataError
    from fusedopt.files import FileError

    try:
        yield
    except (DataError, FileError) as error:
        typer.echo(f"fusedopt: {error}", err=True)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        typer.echo(_missing_extra(error.name), err=True)
    else:
        return
    raise typer.Exit(1)


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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo-output"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 6,
    threads: Annotated[int, typer.Option(min=1, max=1024, help=_THREADS_HELP)] = 1,
) -> None:
    """Learn Rock-Paper-Scissors from drawn hands, time fused against native steps, report on both. Needs no network."""
    from fusedopt.commands.checks import use_threads

    with one_line_errors():
        from fusedopt.examples.demo import run_demo

        use_threads(threads)
        run_demo(out, epochs, say=typer.echo)


@app.command(name="find-lr")
def find_learning_rate(
    dataset: Annotated[str, typer.Argument(help="As in train.")],
    model: Annotated[str, typer.Option(help="lenet, mlp, cnn2, resnet9, ... as in train.")] = "lenet",
    optimizer: Annotated[str, typer.Option(help="As in train.")] = "adamw",
    start_lr: Annotated[float, typer.Option(help="First learning rate.")] = 1e-7,
    end_lr: Annotated[float, typer.Option(help="Last learning rate.")] = 10,
    iterations: Annotated[int, typer.Option(min=2, help="Number of learning rates.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the weights and of the order of the images.")] = 0,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("find-lr.png"),
    threads: Annotated[int, typer.Option(min=1, max=1024, help=_THREADS_HELP)] = 1,
    data_dir: Annotated[Path | None, typer.Option(help="As in train.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Find a learning rate by a range test, print what several methods suggest, and draw the curve."""
    from fusedopt.commands.checks import use_threads
    from fusedopt.examples.tasks import find_task

    with one_line_errors():
        from tqdm import tqdm

        from fusedopt.examples.find_lr import draw, find_on, in_options, report

        use_threads(threads)
        try:
            data = find_task(dataset).load(data_dir, typer.echo)
            result = find_on(
                data,
                model,
                optimizer,
                batch_size=batch_size,
                seed=seed,
                start_lr=start_lr,
                end_lr=end_lr,
                num_iter=iterations,
                progress=lambda steps, total: tqdm(steps, total=total, leave=False, disable=quiet or None),
            )
        except ValueError as error:
            raise typer.BadParameter(in_options(str(error))) from error
        typer.echo(in_options(report(result)))
        try:
            draw(result, f"Range test: {optimizer} on {model}, {data.name}, batches of {batch_size}", out)
        except (OSError, ValueError) as error:  # the latter of a file type that is unknown
            typer.echo(f"fusedopt: {out} cannot be written ({error}); name another file with --out", err=True)
            raise typer.Exit(1) from error
        typer.echo(f"picture: {out}")


@app.command()
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
        from fusedopt.examples.tasks import find_task

        try:
            figure = draw_augmentations(lambda: find_task(dataset).load(data_dir, typer.echo), names or None, seed)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        _write(figure, out)
        typer.echo(f"{out}: {dataset}")


@app.command()
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

        titles = [title for name in names for title in {"all": list(GALLERY), "ours": list(OURS)}.get(name, [name])]
        try:
            low = max_lr / 10 if min_lr is None else min_lr
            simulations = [simulate_named(title, steps, max_lr, low) for title in titles]
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        figure = plot_simulations(titles, simulations)
        _write(figure, out)
        typer.echo(f"{out}: {', '.join(titles)}; {steps} steps")


@app.command()
def info() -> None:
    """Print versions, compiled back ends, the instruction set in use, and devices."""
    import fusedopt

    for key, value in fusedopt.info().items():
        typer.echo(f"{key}: {value}")


from fusedopt.commands import explain, export, predict, report, train, tune  # noqa: E402, only with typer

for _command in (train.train, tune.tune, explain.explain, export.export, predict.predict, report.report):
    app.command()(_command)


def main() -> None:
    """The entry point of the `fusedopt` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name that is no text is printed byte for byte
    try:
        app()
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:  # errors of files have their names
            raise
        with suppress(OSError):
            typer.echo(f"fusedopt: the output cannot be written ({error.strerror}); send it elsewhere", err=True)
        if sys.stdout is not None:  # what is left in it would be tried again at Python's end, and complained about
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
