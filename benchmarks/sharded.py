"""Time steps on DTensor shards: fusedopt against torch's classes, on several gloo processes of this machine.

    python benchmarks/sharded.py
    python benchmarks/sharded.py --ranks 2 --clip
    python benchmarks/sharded.py --alone --optimizers AdamW SGD

20 layers of 64x64 and one of 1024x1024, sharded along the first dimension as FSDP2 does. All implementations take turns
within every repeat, and all processes step together; a ratio is the median of the ratios within the repeats, on rank 0.
With `--alone` only rank 0 steps: what a step costs, where more processes than cores make it wait, too.
"plain" is the same shards as ordinary tensors: what unwrapping costs is the difference.
"loop" reads and writes as much memory as the step, with next to no arithmetic: the time that memory takes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from stream_loop import StreamLoop
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import fusedopt
from fusedopt.benchmark.implementations import Pass
from fusedopt.benchmark.machine import machine, print_machine
from fusedopt.benchmark.timing import OtherWork, Spread, clock_for, interleave

SHAPES = [(64, 64)] * 20 + [(1024, 1024)]
HEADER = f"{'optimizer':<10}{'implementation':<18}{'µs a step':>12}  {'torch default':>14}{'torch fused':>14}"
# Ours, torch's, their options, and the passes over memory of a step.
CASES: dict[str, tuple[Any, Any, dict[str, Any], tuple[Pass, ...]]] = {
    "SGD": (fusedopt.SGD, torch.optim.SGD, {"lr": 1e-4, "momentum": 0.9}, ((3, 2),)),
    "AdamW": (fusedopt.AdamW, torch.optim.AdamW, {"lr": 1e-4}, ((4, 3),)),
    "LAMB": (fusedopt.LAMB, None, {"lr": 1e-4}, ((4, 2), (3, 1))),
}
# Several of the scheduler's time slices, or some processes are through before others have had their turn.
BATCH_SECONDS = 0.2


def parameters(mesh: Any, *, wrapped: bool) -> list[nn.Parameter]:
    """Parameters with gradients; with `wrapped` DTensors, else the same shards as plain tensors."""
    torch.manual_seed(0)
    params = []
    for shape in SHAPES:
        value, grad = (distribute_tensor(torch.rand(shape) + 0.5, mesh, [Shard(0)]) for _ in range(2))
        p = nn.Parameter(value if wrapped else value.to_local().clone())
        p.grad = grad if wrapped else grad.to_local().clone()
        params.append(p)
    return params


def implementations(name: str, mesh: Any, max_grad_norm: float | None) -> dict[str, Callable[[], object]]:
    """Steps to be timed, by name."""
    ours, theirs, options, passes = CASES[name]
    clip = {"max_grad_norm": max_grad_norm}
    plain = parameters(mesh, wrapped=False)
    runs: dict[str, Callable[[], object]] = {
        "fusedopt": ours(parameters(mesh, wrapped=True), **options, **clip).step,
        "plain": ours(plain, **options, **clip).step,
    }
    if max_grad_norm is not None:
        passes = ((1, 0), *passes)
    runs["loop"] = StreamLoop(passes, sum(p.numel() for p in plain), torch.float32, 1)
    for kind, fused in (("torch default", None), ("torch fused", True)):
        known = theirs is not None and max_grad_norm is None and not (fused and theirs is torch.optim.SGD)
        if known:  # DTensor has no sharding strategy for torch's fused SGD
            runs[kind] = theirs(parameters(mesh, wrapped=True), **options, fused=fused).step
    return runs


class Together:
    """Steps that begin when all processes are ready, with the same number of calls on each, or `alone` on the first."""

    def __init__(self, clock: Callable[[Any, int], float], *, alone: bool) -> None:
        self.clock = clock
        self.waits = alone and dist.get_rank() > 0

    def __call__(self, run: Any, calls: int) -> float:
        """Seconds per call, the largest of all processes."""
        dist.barrier()
        seconds = torch.tensor(0.0 if self.waits else self.clock(run, calls), dtype=torch.float64)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)  # the same everywhere, so that all time alike
        return float(seconds)


def work(options: argparse.Namespace, rank: int, folder: Path) -> None:
    """One process."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), options.ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=options.ranks)
    mesh = init_device_mesh("cpu", (options.ranks,))
    clock = Together(clock_for(torch.device("cpu")), alone=options.alone)
    others = OtherWork()
    rows = []
    for name in options.optimizers:
        runs = implementations(name, mesh, 1.0 if options.clip else None)
        samples = interleave(runs, clock, options.repeats, options.repeats * 60.0, batch=BATCH_SECONDS)
        for kind, sample in samples.items():
            ratios = {
                other: sample.relative_to(samples[other]).median
                for other in ("torch default", "torch fused")
                if other in samples
            }
            rows.append((name, kind, Spread.of(sample.seconds).median * 1e6, ratios))
    if rank == 0:
        (folder / "rows.json").write_text(json.dumps({"rows": rows, "busy": others.cores()}))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--optimizers", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--clip", action="store_true", help="with max_grad_norm")
    parser.add_argument("--alone", action="store_true", help="only one process steps; of SGD and AdamW without --clip")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--worker", nargs=2, metavar=("RANK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone and (options.clip or "LAMB" in options.optimizers):
        parser.error("--alone: the sums of LAMB and of --clip need all processes; say --optimizers SGD AdamW")
    if options.worker:
        work(options, int(options.worker[0]), Path(options.worker[1]))
        return
    print_machine(machine(1, with_ours=True))
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:]]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen([*command, "--worker", str(rank), folder], env=environment)
            for rank in range(options.ranks)
        ]
        if any([process.wait() for process in processes]):
            raise SystemExit("a process failed")
        found = json.loads((Path(folder) / "rows.json").read_text())
    for name, kind, us, ratios in found["rows"]:
        print(f"{name:<10}{kind:<18}{us:>12,.0f}  " + "".join(f"{ratio:>13.2f}x" for ratio in ratios.values()))
    print(f"# cores busy with other work than rank 0's: {found['busy']:.1f}")


if __name__ == "__main__":
    main()
