"""`fusedopt run`."""

from __future__ import annotations

from typing import Annotated

import typer

# What follows the script is its own, --help too.
SCRIPTS_OWN = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}


def run(
    script: Annotated[str, typer.Argument(help="A Python script, or -m and a module.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="The script's.")] = None,
) -> None:
    """Run a script with torch.optim's classes replaced, and say which optimizers were, and what it brought."""
    from fusedopt.running import main

    main([script, *(arguments or [])])
