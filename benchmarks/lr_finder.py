"""The range test against torch_lr_finder's, in one interleaved run: the same steps on the same batches.

Each run makes a finder, tests 100 learning rates on a LeNet without diverging, and puts everything back. Both must
record the same losses first, or there is nothing to compare. On the CPU with one thread the clock is the process's
CPU time, which other work on the machine disturbs less than the time on the wall.

    pip install torch-lr-finder==0.2.2
    python benchmarks/lr_finder.py
"""

import argparse
import contextlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from time import process_time
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fusedopt
from fusedopt.benchmark.machine import machine, print_machine
from fusedopt.benchmark.timing import OtherWork, Run, Spread, host_clock, interleave
from fusedopt.models import GarmentClassifier
from fusedopt.training import seeded

ITERATIONS = 100
RANGE = {"start_lr": 1e-7, "end_lr": 1e-3, "num_iter": ITERATIONS}
THEIRS = "torch_lr_finder 0.2.2"


def subject(device: torch.device, batch_size: int) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    """A LeNet, torch's SGD for all finders alike, and random images on the device."""
    model = seeded(GarmentClassifier, 0).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16 * batch_size, 1, 28, 28, generator=generator).to(device)
    labels = torch.randint(10, (16 * batch_size,), generator=generator).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    return model, optimizer, DataLoader(TensorDataset(images, labels), batch_size)


def candidates(device: torch.device, batch_size: int) -> dict[str, Callable[[], Mapping[str, list[float]]]]:
    """By name, what runs one range test and returns its history."""
    try:
        import torch_lr_finder
    except ImportError as error:
        raise SystemExit("this compares with torch_lr_finder: pip install torch-lr-finder==0.2.2") from error

    criterion = nn.CrossEntropyLoss()

    def with_finder(finder_class: Any) -> Callable[[], Mapping[str, list[float]]]:
        model, optimizer, loader = subject(device, batch_size)

        def run() -> Mapping[str, list[float]]:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                finder = finder_class(model, optimizer, criterion)
                finder.range_test(loader, **RANGE)
                finder.reset()
            return finder.history

        return run

    model, optimizer, loader = subject(device, batch_size)

    def run_find_lr() -> Mapping[str, list[float]]:
        result = fusedopt.find_lr(model, optimizer, criterion, loader, **RANGE)
        return {"lr": result.lrs, "loss": result.smoothed}

    return {
        THEIRS: with_finder(torch_lr_finder.LRFinder),
        "fusedopt.LRFinder": with_finder(fusedopt.LRFinder),
        "fusedopt.find_lr": run_find_lr,
    }


def check_same_work(runs: Mapping[str, Callable[[], Mapping[str, list[float]]]], device: torch.device) -> None:
    """All record the same history, to rounding on a GPU."""
    expected = runs[THEIRS]()
    for name, run in runs.items():
        history = run()
        tolerance = 0.0 if device.type == "cpu" else 1e-4
        pairs = [*zip(history["loss"], expected["loss"], strict=True), *zip(history["lr"], expected["lr"], strict=True)]
        if not all(math.isclose(a, b, rel_tol=max(tolerance, 1e-12)) for a, b in pairs):
            raise SystemExit(f"{name} records another history than {THEIRS}: nothing to compare")


def cpu_clock(run: Run, calls: int) -> float:
    """CPU seconds of this process per call."""
    start = process_time()
    for _ in range(calls):
        run()
    return (process_time() - start) / calls


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--seconds", type=float, default=60.0, help="after which it stops repeating")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    runs = candidates(device, options.batch_size)
    check_same_work(runs, device)

    def finished(run: Callable[[], object]) -> Callable[[], object]:
        def synchronised() -> None:
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return synchronised

    print_machine(machine(options.threads, with_ours=True))
    other = OtherWork()
    clock = cpu_clock if device.type == "cpu" and options.threads == 1 else host_clock
    samples = interleave({n: finished(r) for n, r in runs.items()}, clock, options.repeats, options.seconds)
    busy = other.cores()
    print(f"{'finder':<24}{'µs per learning rate':>22}  {'quartiles':<20}{THEIRS + ' takes':>30}")
    for name, sample in samples.items():
        us = Spread.of([1e6 * seconds / ITERATIONS for seconds in sample.seconds])
        ratio = sample.relative_to(samples[THEIRS])
        print(
            f"{name:<24}{us.median:>22,.0f}  {f'{us.low:,.0f} .. {us.high:,.0f}':<20}"
            f"{ratio.median:>12.3f}x ({ratio.low:.3f} .. {ratio.high:.3f})"
        )
    kind = "CPU time" if clock is cpu_clock else "time"
    repeats = len(samples[THEIRS].seconds)
    print(f"\n{kind}; {repeats} repeats of {ITERATIONS} learning rates, batches of {options.batch_size}")
    if busy > 0.1:
        print(f"warning: other work kept {busy:.1f} cores busy meanwhile; the ratios are worth little")


if __name__ == "__main__":
    main()
