"""`fusedopt tune`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusedopt.cli.errors import one_line_errors

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


def tune(
    dataset: Annotated[str, typer.Argument(help="As in train.")],
    method: Annotated[str, typer.Option(help="grid, random, bayes, genetic, halving or hyperband.")] = "bayes",
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE,VALUE,... or NAME=LOW..HIGH for optimizer, lr, momentum, weight-decay or batch-size; "
            "repeat it for several. What is not named is searched too: sgd,adamw, wide ranges, in a grid a few values."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="As in train.")] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="How many, those in --study included; by default 20, or the whole grid.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of each trial.")] = 3,
    held_out: Annotated[float, typer.Option(help="Share of the training images that the accuracy is taken on.")] = 0.2,
    study: Annotated[Path | None, typer.Option(help="SQLite file to keep the trials in, and to go on with.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Trials at once; more than one need --study.")] = 1,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of the search, and of weights and order in every trial.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads of each process.")] = 1,
    data_dir: Annotated[Path | None, typer.Option(help="As in train.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for pictures of the search.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the result only.")] = False,
) -> None:
    """Search for good settings on held-out training images; prints the best as a `fusedopt train` command.

    After Ctrl-C, or with more --trials, the same command goes on with what --study holds.
    """
    from fusedopt.cli.checks import use_threads

    with one_line_errors():
        from fusedopt.data import hold_out
        from fusedopt.runs.folder import make_folder
        from fusedopt.tasks import find_task
        from fusedopt.tuning import METHODS, Search, finished, make_space, open_study, run

        def note(line: str) -> None:
            if not quiet:
                typer.echo(line)

        use_threads(threads, processes)
        try:
            if method not in METHODS:
                raise ValueError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
            if processes > 1 and study is None:
                raise ValueError("--processes needs --study, the file which they share")
            search = Search(
                dataset, method, make_space(space or (), grid=method == "grid"), model, epochs, seed, held_out
            )
            find_task(dataset).network(model)  # names are checked before anything is read
            data = hold_out(find_task(dataset).load(data_dir, note), held_out)
            search.check(data)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        if out is not None:
            make_folder(out)
        with open_study(search, study) as kept:
            if finished(kept):
                note(f"{study} holds {finished(kept)} finished trials")
            try:
                for trial in run(kept, search, data, trials, processes=processes, path=study):
                    note(_line(trial))
            except KeyboardInterrupt:
                goes_on = f"the same command goes on with {study}" if study else "with --study it could be gone on with"
                typer.echo(f"fusedopt: stopped after {finished(kept)} finished trials; {goes_on}", err=True)
                raise typer.Exit(130) from None
            network = shlex.quote(dataset) + (f" --model {model}" if model else "")
            _conclude(kept, network, f"--epochs {epochs} --seed {seed}", out)


def _conclude(study: Study, network: str, rest: str, out: Path | None) -> None:
    from fusedopt.tuning import best_trial, draw_search, finished

    best = best_trial(study)
    if best is None:
        diverged = all("diverged" in trial.user_attrs for trial in study.trials)
        advice = "the loss was not finite in any; search lower values of lr" if diverged else "give more --trials"
        typer.echo(f"fusedopt: no trial came to its last epoch; {advice}", err=True)
        raise typer.Exit(1)
    typer.echo(f"best of {finished(study)} trials: held-out accuracy {100 * best.values[0]:.2f} %, with")
    typer.echo(f"fusedopt train {network} {best.user_attrs['options']} {rest}")
    if out is not None:
        try:
            pictures = draw_search(study, out)
        except OSError as error:
            typer.echo(f"fusedopt: {out} cannot be written ({error}); name another folder with --out", err=True)
            raise typer.Exit(1) from error
        typer.echo(f"pictures: {', '.join(map(str, pictures))}")


def _line(trial: FrozenTrial) -> str:
    """Says what a trial was, and what came of it."""
    epochs, accuracy = max(trial.intermediate_values.items())
    why = " by a loss that is not finite" if "diverged" in trial.user_attrs else ""
    end = "" if trial.state.name == "COMPLETE" else f", stopped after epoch {epochs}{why}"
    return f"trial {trial.number}: held-out accuracy {100 * accuracy:.2f} %{end}: {trial.user_attrs['options']}"
