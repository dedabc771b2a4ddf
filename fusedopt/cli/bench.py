"""`fusedopt bench`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

_QUICK = 12.0


def bench(
    subject: Annotated[
        str,
        typer.Argument(
            help="torchvision:resnet50, timm:NAME, package.module:factory, a parameter set such as lenet or gpt2, or "
            "shapes: 1000*64,128x256."
        ),
    ],
    optimizer: Annotated[list[str] | None, typer.Option(help="AdamW, SGD-Nesterov, ...; may be repeated.")] = None,
    implementation: Annotated[
        list[str] | None, typer.Option(help="fusedopt, for-loop, foreach, fused, ...; may be repeated.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Time whole training steps, too, on so many drawn inputs.")
    ] = None,
    input_shape: Annotated[str | None, typer.Option("--input", help="Shape of one input, such as 3x224x224.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, ...; the model's own by default.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU where there is one.")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="For all measurements, about.")] = 100.0,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"In about {_QUICK:.0f} seconds; longer for a large --batch.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; torch's by default.")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this file.")] = None,
) -> None:
    """Time a step of each optimizer on your own model: fusedopt, PyTorch, and what else is installed."""
    from fusedopt.cli.errors import one_line_errors

    with one_line_errors():
        import torch

        from fusedopt.benchmark.comparing import compare

        if plot is not None:
            import matplotlib  # noqa: F401, before the work: it is not to be lost

        if threads is not None:
            torch.set_num_threads(threads)
        try:
            comparison = compare(
                subject,
                optimizer,
                implementations=implementation,
                batch=batch,
                input_shape=_shape(input_shape),
                dtype=_kind(dtype),
                device=_place(device),
                seconds=_QUICK if quick else seconds,
                say=lambda text: typer.echo(text, err=True),
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        typer.echo(str(comparison))
        if out is not None:
            _write(out, lambda: out.write_text(json.dumps(comparison.as_dict(), indent=1) + "\n"))
        if plot is not None:
            _write(plot, lambda: comparison.plot(plot))


def _write(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except (OSError, ValueError) as error:  # the latter of a file type that is unknown
        typer.echo(f"fusedopt: {path} cannot be written ({error}); name another file", err=True)
        raise typer.Exit(1) from error


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+(x\d+)*", text):
        raise typer.BadParameter(f"{text!r} is no shape such as 3x224x224")
    return tuple(int(size) for size in text.split("x"))


def _place(name: str | None) -> str:
    import torch

    place = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if place.partition(":")[0] not in ("cpu", "cuda"):
        raise typer.BadParameter(f"--device is cpu or cuda, not {place}")
    if place.startswith("cuda") and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here")
    return place


def _kind(name: str | None) -> torch.dtype | None:
    import torch

    kind = None if name is None else getattr(torch, name, None)
    if name is not None and not isinstance(kind, torch.dtype):
        raise typer.BadParameter(f"torch has no dtype {name!r}; write bfloat16, float16, float32 or float64")
    return kind
