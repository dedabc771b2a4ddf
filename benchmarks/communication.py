"""What a step on shards sends: collectives and bytes by optimizer, computed, for any number of processes.

    python benchmarks/communication.py
    python benchmarks/communication.py --tensors 300 --groups 2

Elementwise rules need nothing of other processes. A clipped norm is one number for each (mesh, sharded dimensions);
LAMB takes two sums a tensor, SWATS two a parameter group. What is shared over the same processes goes in one all-reduce
of float64 numbers; replicas send nothing. `tests/benchmarks/test_communication.py` counts the collectives of real
steps.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

SIZE = 8  # bytes of a float64
OPTIMIZERS = {"elementwise": None, "LAMB": "tensor", "SWATS": "group"}
"""Over what the rule takes two sums in a step; all other classes are elementwise."""
RANKS = (8, 64, 1024)


@dataclass(frozen=True)
class AllReduce:
    """One collective of a step."""

    processes: int
    bytes: int

    @property
    def sent(self) -> float:
        """Bytes that each process sends, in the ring form, which sends least."""
        return 2 * (self.processes - 1) / self.processes * self.bytes

    @property
    def rounds(self) -> int:
        """Messages in succession, in the tree form, which takes least for so few bytes: up and down again."""
        return 2 * (self.processes - 1).bit_length()


def collectives(
    scope: str | None, *, clips: bool, tensors: int, groups: int, sharded: Sequence[int]
) -> list[AllReduce]:
    """The collectives of one step.

    Args:
        scope: over what the rule takes sums: "tensor", "group" or None.
        clips: whether there is a `max_grad_norm`.
        tensors, groups: how many there are; every tensor is placed alike, and every group has one.
        sharded: sizes of the mesh dimensions along which tensors are sharded; (8,) is FSDP2 on 8 processes, (8, 8)
            FSDP2 with tensor parallelism, (8,) also HSDP with 8 processes in each replica.
    """
    numbers = [1] if clips else []
    if scope is not None:
        numbers.append(2 * (tensors if scope == "tensor" else groups))
    return [AllReduce(processes, SIZE * count) for count in numbers for processes in sharded if processes > 1]


def table(tensors: int, groups: int) -> str:
    """The table of docs/distributed.md."""
    lines = [
        "| optimizer | `max_grad_norm` | mesh | collectives a step | bytes, all of them | sent by each process |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, scope in OPTIMIZERS.items():
        for clips in (False, True):
            for mesh in [(ranks,) for ranks in RANKS] + [(RANKS[-1] // 8, 8)]:
                found = collectives(scope, clips=clips, tensors=tensors, groups=groups, sharded=mesh)
                size, sent = sum(c.bytes for c in found), sum(c.sent for c in found)
                cells = (name, "yes" if clips else "no", " x ".join(map(str, mesh)), len(found), size, f"{sent:.0f}")
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, default=161, help="of the model; ResNet-50 has 161")
    parser.add_argument("--groups", type=int, default=1, help="parameter groups")
    options = parser.parse_args()
    print(f"{options.tensors} tensors in {options.groups} group(s), all sharded over all dimensions of the mesh\n")
    print(table(options.tensors, options.groups))


if __name__ == "__main__":
    main()
