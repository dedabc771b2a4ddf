"""`fusedopt info`."""

import typer


def info() -> None:
    """Print versions, compiled back ends, the instruction set in use, and devices."""
    import fusedopt

    for key, value in fusedopt.info().items():
        typer.echo(f"{key}: {value}")
