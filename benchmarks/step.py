"""Time ``optimizer.step()``: optimizers x parameter sets x implementations, all in one run.

    python benchmarks/step.py                                  # the default table, in a few minutes
    python benchmarks/step.py --optimizers AdamW --sets lenet  # one cell
    python benchmarks/step.py --dtype bfloat16 --format masters
    python benchmarks/step.py --json run.json --plot run.png --markdown

All implementations of a case work on the same parameters and gradients, each with its own states, and take turns
within every repeat; a ratio is the median of the ratios within the repeats.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from report import (
    HEADER,
    Row,
    as_json,
    format_row,
    markdown,
    print_geometric_means,
    print_warning,
)
from stream_loop import StreamLoop

from fusedopt.benchmark.implementations import (
    CASES,
    DEFAULT_CASES,
    FORMATS,
    IMPLEMENTATIONS,
    NATIVE,
    OURS,
    OptimizerCase,
)
from fusedopt.benchmark.machine import machine, print_machine
from fusedopt.benchmark.parameter_sets import SETS, ParameterSet
from fusedopt.benchmark.timing import OtherWork, Spread, clock_for, interleave

LOOP = "loop"


def measure(
    case: OptimizerCase,
    parameter_set: ParameterSet,
    parameters: Sequence[torch.nn.Parameter],
    *,
    implementations: Sequence[str] = IMPLEMENTATIONS,
    repeats: int = 21,
    seconds: float = 10.0,
) -> list[Row]:
    """Time every implementation of ``case`` on ``parameters``, and the hand-written loop last."""
    dtype, device = parameters[0].dtype, parameters[0].device
    optimizers = {name: make(parameters) for name, make in case.factories().items() if name in implementations}
    loop = StreamLoop(case.passes, parameter_set.elements, dtype, torch.get_num_threads())
    runs: dict[str, Callable[[], object]] = {name: optimizer.step for name, optimizer in optimizers.items()}
    others = OtherWork()
    samples = interleave({**runs, LOOP: loop}, clock_for(device), repeats, seconds)
    busy_elsewhere = others.cores()
    for name, optimizer in optimizers.items():
        check_no_subnormals(f"{case.name} {parameter_set.name} {name}", optimizer)

    step_bytes = case.accesses * parameter_set.elements * dtype.itemsize
    if OURS in optimizers:
        step_bytes = optimizers[OURS].bytes_per_step()  # type: ignore[attr-defined]
    natives = [name for name in NATIVE if name in samples]
    fastest = min(natives, key=lambda name: Spread.of(samples[name].seconds).median, default=None)

    rows = []
    for name, sample in samples.items():
        moved = loop.bytes if name == LOOP else step_bytes
        ratio = sample.relative_to(samples[fastest]) if fastest is not None and name != LOOP else None
        rows.append(
            Row(
                optimizer=case.name,
                parameter_set=parameter_set.name,
                implementation=name,
                tensors=len(parameter_set.shapes),
                elements=parameter_set.elements,
                dtype=str(dtype).removeprefix("torch."),
                repeats=len(sample.seconds),
                calls=sample.calls,
                us=Spread.of([second * 1e6 for second in sample.seconds]),
                bytes=moved,
                gb_per_s=moved / Spread.of(sample.seconds).median * 1e-9,
                loop_share=moved / loop.bytes * sample.relative_to(samples[LOOP]).median,
                fastest_native=fastest,
                ratio=ratio,
                busy_elsewhere=busy_elsewhere,
            )
        )
    return rows


def check_no_subnormals(what: str, optimizer: torch.optim.Optimizer) -> None:
    """Subnormal numbers would slow some implementations down and not others.

    float16 is judged by float32's range, in which it is computed with.
    """
    smallest = torch.finfo(torch.float32).tiny
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    states = [item for state in optimizer.state.values() for item in state.items()]
    tensors += [value for name, value in states if torch.is_tensor(value) and name != "master_rest"]  # which is bits
    for tensor in tensors:
        magnitude = tensor.detach().abs()
        if magnitude.numel() and magnitude.min() < smallest and ((magnitude > 0) & (magnitude < smallest)).any():
            raise RuntimeError(f"{what}: a parameter or state has subnormal values")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET", help=", ".join(SETS))
    parser.add_argument(
        "--optimizers", nargs="+", choices=CASES, default=list(DEFAULT_CASES), metavar="NAME", help=", ".join(CASES)
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        choices=IMPLEMENTATIONS,
        default=list(IMPLEMENTATIONS),
        metavar="NAME",
        help=", ".join(IMPLEMENTATIONS),
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch and of the loop")
    parser.add_argument("--repeats", type=int, default=21, help="most repeats of a case")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for a case, after which it stops repeating")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16", "float64"), default="float32")
    parser.add_argument(
        "--format", choices=FORMATS, default="plain", help="what our parameters and states are stored in"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios (needs matplotlib)")
    parser.add_argument("--markdown", action="store_true", help="print a summary of the ratios for the README")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    options = _parse(arguments)
    if options.plot:  # Here rather than at the end: a missing matplotlib should not cost a whole run.
        try:
            from plot import plot_ratios
        except ImportError as error:
            raise SystemExit("--plot needs matplotlib: pip install matplotlib") from error
    torch.set_num_threads(options.threads)
    dtype: torch.dtype = getattr(torch, options.dtype)
    description = machine(options.threads, with_ours=OURS in options.implementations)
    print_machine(description)
    print(HEADER)
    rows: list[Row] = []
    for name in options.sets:
        parameters = SETS[name].parameters(dtype, torch.device("cpu"))
        for optimizer in options.optimizers:
            measured = measure(
                CASES[optimizer].stored(options.format),
                SETS[name],
                parameters,
                implementations=options.implementations,
                repeats=options.repeats,
                seconds=options.seconds,
            )
            for row in measured:
                print(format_row(row), flush=True)
            rows += measured
    print_geometric_means(rows)
    print_warning(rows)
    if options.markdown:
        print("\n" + markdown(description, rows))
    if options.json:
        options.json.write_text(json.dumps(as_json(description, rows), indent=1) + "\n")
    if options.plot:
        plot_ratios(rows, description, options.plot)


if __name__ == "__main__":
    main()
