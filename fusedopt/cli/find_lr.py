"""`fusedopt find-lr`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedopt.cli.checks import THREADS_HELP, use_threads
from fusedopt.cli.errors import one_line_errors
from fusedopt.cli.pictures import check_picture, write


def find_lr(
    dataset: Annotated[str, typer.Argument(help="As in train.")],
    model: Annotated[
        str | None, typer.Option(help="lenet, mlp, cnn2, resnet9, ... as in train; each data set has its own.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="As in train.")] = "adamw",
    start_lr: Annotated[float, typer.Option(help="First learning rate.")] = 1e-7,
    end_lr: Annotated[float, typer.Option(help="Last learning rate.")] = 10,
    iterations: Annotated[int, typer.Option(min=2, help="Number of learning rates.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the weights and of the order of the images.")] = 0,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("find-lr.png"),
    threads: Annotated[int, typer.Option(min=1, max=1024, help=THREADS_HELP)] = 1,
    data_dir: Annotated[Path | None, typer.Option(help="As in train.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Find a learning rate by a range test, print what several methods suggest, and draw the curve."""
    from fusedopt.tasks import find_task

    with one_line_errors():
        from tqdm import tqdm

        from fusedopt.examples.find_lr import draw, find_on, in_options, report

        check_picture(out)
        use_threads(threads)
        try:
            task = find_task(dataset)
            data, model = task.load(data_dir, typer.echo), model or task.model
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
        if result.lrs[0] > start_lr:
            typer.echo(
                f"the curve from {start_lr:.1e} on is flat for too long: tried again from {result.lrs[0]:.1e} on"
            )
        typer.echo(in_options(report(result)))
        write(draw(result, f"Range test: {optimizer} on {model}, {data.name}, batches of {batch_size}"), out)
        typer.echo(f"picture: {out}")
