"""`fusedopt predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fusedopt.cli.errors import one_line_errors


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    files: Annotated[list[Path], typer.Argument(help="Images of any size.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name, the most probable first.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list with an object for each file.")] = False,
) -> None:
    """Classify image files. One that cannot be read is named, the others go on, and the exit code is 1."""
    with one_line_errors():
        from fusedopt.data import DataError
        from fusedopt.inference import classify
        from fusedopt.training import RunFolder

        results: list[dict[str, Any]] = []
        for path, found in classify(RunFolder.open(run), files, top):
            if isinstance(found, DataError):
                typer.echo(f"fusedopt: {found}", err=True)
                results.append({"file": str(path), "error": str(found)})
            else:
                shares = [{"class": name, "probability": share} for name, share in found]
                results.append({"file": str(path), "predictions": shares})
                if not as_json:
                    typer.echo(f"{path}: {', '.join(f'{name} {100 * share:.1f} %' for name, share in found)}")
        if as_json:
            text = json.dumps(results, indent=1, ensure_ascii=False)
            # What is no text in a file's name becomes \udc80 ..., which JSON reads back as Python has it.
            typer.echo(text.encode("utf-8", "backslashreplace").decode())
        if any("error" in result for result in results):
            raise typer.Exit(1)
