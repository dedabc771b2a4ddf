"""Time ``clip_grad_norm_``: fusedopt against torch, in one run (``clip_grad_value_`` is torch's own).

    python benchmarks/clip.py
    python benchmarks/clip.py --sets lenet small --threads 1

"idle" is a call that finds the norm below its limit, "clipped" one that scales. Both implementations take turns within
every repeat; a ratio is the median of the ratios within the repeats.
"""

import argparse
from collections.abc import Callable, Sequence

import torch

import fusedopt
from fusedopt.benchmark.machine import machine, print_machine
from fusedopt.benchmark.parameter_sets import SETS
from fusedopt.benchmark.timing import OtherWork, Spread, clock_for, interleave

HEADER = f"{'parameters':<12}{'function':<18}{'case':<9}{'torch µs':>11}{'fusedopt µs':>13}  {'torch / fusedopt':<24}"

Clip = Callable[[list[torch.nn.Parameter]], object]


class Shrinking:
    """Clips by a norm that falls from call to call, so that every call has something to scale."""

    def __init__(self, clip: Callable[..., object], norm: float) -> None:
        self.clip, self.norm = clip, norm

    def __call__(self, parameters: list[torch.nn.Parameter]) -> None:
        """Clip the gradients a little."""
        self.norm *= 0.9999
        self.clip(parameters, self.norm)


def cases(parameters: list[torch.nn.Parameter]) -> dict[tuple[str, str], tuple[Clip, Clip]]:
    """What is timed: by function and case, torch's and ours."""
    theirs, ours = torch.nn.utils.clip_grad_norm_, fusedopt.clip_grad_norm_
    norm = float(ours(parameters, float("inf")))
    return {
        ("clip_grad_norm_", "idle"): (lambda p: theirs(p, 2 * norm), lambda p: ours(p, 2 * norm)),
        ("clip_grad_norm_", "clipped"): (Shrinking(theirs, norm), Shrinking(ours, norm)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET", help=", ".join(SETS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=21, help="most repeats of a case")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for a case, after which it stops repeating")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cpu = torch.device("cpu")
    print_machine(machine(options.threads, with_ours=True))
    print(HEADER)
    others = OtherWork()
    for name in options.sets:
        # Each implementation clips gradients of its own: the clipped ones shrink.
        parameters = [SETS[name].parameters(torch.float32, cpu) for _ in range(2)]
        for (function, case), clips in cases(parameters[0]).items():
            runs = {
                label: lambda clip=clip, own=own: clip(own)
                for label, clip, own in zip(("torch", "fusedopt"), clips, parameters, strict=True)
            }
            samples = interleave(runs, clock_for(cpu), options.repeats, options.seconds)
            ratio = samples["fusedopt"].relative_to(samples["torch"])
            times = {label: Spread.of(sample.seconds).median * 1e6 for label, sample in samples.items()}
            print(
                f"{name:<12}{function:<18}{case:<9}{times['torch']:>11,.1f}{times['fusedopt']:>13,.1f}  "
                f"{ratio.median:.2f}x ({ratio.low:.2f} .. {ratio.high:.2f})",
                flush=True,
            )
    print(f"# cores busy with other work meanwhile: {others.cores():.1f}")


if __name__ == "__main__":
    main()
