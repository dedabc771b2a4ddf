"""`fusedopt explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedopt.cli.errors import one_line_errors


def explain(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    layer: Annotated[str | None, typer.Option(help="Draw this layer, e.g. conv1, and name the files after it.")] = None,
    images: Annotated[int, typer.Option(min=1, help="How many misclassified images.")] = 25,
    filters: Annotated[bool, typer.Option("--filters", help="Draw the first layer's filters, too.")] = False,
    activations: Annotated[
        bool, typer.Option("--activations", help="Draw the activations of the last convolution, or hidden layer, too.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of which images are drawn.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="As for train.")] = None,
) -> None:
    """Draw what the network looked at in images that it got wrong: Grad-CAM, of the last convolution.

    (Which path an optimizer's parameters take is what `optimizer.explain()` says.)

    The pictures go into the run's folder. Those without a named layer are then part of `fusedopt report`.
    """
    with one_line_errors():
        from fusedopt.reports import attribute_wrong, evaluate, plot_activations, plot_filters, write_picture
        from fusedopt.training import RunFolder

        folder = RunFolder.open(run)
        data, model, normalize = folder.load_data(data_dir, typer.echo), folder.load_model(), folder.normalize
        evaluation = evaluate(model, data, normalize)
        try:
            wrong = attribute_wrong(model, data, normalize, evaluation, count=images, seed=seed, layer=layer)
            figures = {"grad-cam": wrong.plot() if wrong else None}
            if filters:
                figures["filters"] = plot_filters(model, folder.config.channels, folder.config.size, layer)
            if activations:
                figures["activations"] = plot_activations(model, data, normalize, seed=seed, layer=layer)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        for name, figure in figures.items():
            if figure is None:
                typer.echo(f"no test image of {data.name} is misclassified, so there is nothing to explain")
            else:
                path = run / (f"{name}.png" if layer is None else f"{name}-{layer}.png")
                write_picture(figure, path)
                typer.echo(path)
