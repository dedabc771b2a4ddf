"""What storing parameters and states in fewer bytes costs in quality: networks x optimizers x formats x seeds.

A LeNet and a small ResNet-9 learn Fashion-MNIST, a CNN2 learns Rock-Paper-Scissors, and a small transformer the next
character of the help texts that come with Python. All formats of a network, an optimizer and a seed begin with the same
weights and see the same batches, at the same learning rates.

    python benchmarks/low_precision.py --json results.json --plot results.png   # all
    python benchmarks/low_precision.py --tasks lenet --optimizers adamw --formats float32 8bit --seeds 0 1 2

All takes about an hour on one core, half of that with `--jobs 2` on two. With `--json`, each run is written as soon as
it is done, and those that the file has already are not repeated: an interrupted benchmark goes on, and more seeds are
added, by the same command. The tables and the picture are of all runs in the file.
"""

import argparse
import json
import multiprocessing
import shlex
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from low_precision_report import differences, markdown, plot
from low_precision_training import FORMATS, OPTIMIZERS, SUBJECTS, Run, train

from fusedopt.benchmark.machine import machine, print_machine
from fusedopt.files import write_durably


class Results:
    """The runs so far, and the commands and machines that made them; kept in a file, if one is given."""

    def __init__(self, path: Path | None, session: dict[str, Any]) -> None:
        self._path = path
        found = json.loads(path.read_text()) if path and path.exists() else {"sessions": [], "runs": []}
        self.runs = {run.key: run for run in (Run(**row) for row in found["runs"])}
        self._sessions = [*found["sessions"], session]

    def add(self, run: Run) -> None:
        """Takes over a run of this session, and writes the file."""
        self.runs[run.key] = replace(run, session=len(self._sessions) - 1)
        if self._path:
            rows = [asdict(run) for _, run in sorted(self.runs.items())]
            lines = ",\n  ".join(json.dumps(row) for row in rows)
            sessions = json.dumps(self._sessions, indent=1).replace("\n", "\n ")
            write_durably(self._path, f'{{\n "sessions": {sessions},\n "runs": [\n  {lines}\n ]\n}}\n'.encode())


def _trained(missing: Sequence[tuple[str, str, str, int, int]], jobs: int) -> Iterator[Run]:
    """Trains, and yields each run as it is done."""
    if jobs == 1:
        yield from (train(*run) for run in missing)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (1,)) as pool:
        yield from (done.result() for done in as_completed([pool.submit(train, *run) for run in missing]))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of weights, order and dropout")
    parser.add_argument("--steps", type=int, help="of each training; by default as many as the network needs")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each with one thread")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the scores against the bytes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is missing, and prints the tables."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    command = shlex.join(["python", "benchmarks/low_precision.py", *(sys.argv[1:] if arguments is None else arguments)])
    session = {"command": command, "machine": machine()}
    print_machine(session["machine"])
    results = Results(options.json, session)
    wanted = [
        (task, optimizer, name, seed, options.steps or SUBJECTS[task].steps)
        for seed in options.seeds  # outermost, so that what is interrupted has whole tables
        for task in options.tasks
        for optimizer in options.optimizers
        for name in options.formats
    ]
    for task, optimizer, *_, steps in wanted:
        others = {run.steps for run in results.runs.values() if run.task == task} - {steps}
        rates = {run.lr for run in results.runs.values() if (run.task, run.optimizer) == (task, optimizer)}
        if others or rates - {SUBJECTS[task].lrs[optimizer]}:
            raise SystemExit(f"{options.json}: has runs of {task} with other steps or rates; name another file")
    missing = [run for run in wanted if run[:4] not in results.runs]
    for run in _trained(missing, options.jobs):
        results.add(run)
        print(*run.key, f"score {run.score:.4f}, {run.seconds:.0f} s", flush=True)
    runs = list(results.runs.values())
    print(f"\n{markdown(runs)}\n\n{differences(runs)}")
    if options.plot:
        plot(runs, options.plot)


if __name__ == "__main__":
    main()
