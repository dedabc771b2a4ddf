"""Several processes that train one model: `DistributedDataParallel` or `fully_shard` under `torchrun`."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fusedopt.sharding import is_sharded
from fusedopt.training.sharded import shard

T = TypeVar("T")


class MainFailedError(RuntimeError):
    """The main process has failed, and says why; this one only has to end."""


@dataclass(frozen=True)
class World:
    """The processes that train one model, and which of them this is; by default the only one.

    Attributes:
        rank: 0 for the process that writes and prints.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, model: nn.Module) -> World:
        """Returns the processes of a `DistributedDataParallel`, or of a model on which `fully_shard` was called.

        Any other model is trained by this one alone.
        """
        return cls.joined() if isinstance(model, DistributedDataParallel) or is_sharded(model) else cls()

    @classmethod
    def joined(cls) -> World:
        """Returns the processes of the default group, where there is one."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, order: Tensor, batch_size: int | Sequence[int]) -> Tensor:
        """Returns what this process takes of each batch of an order.

        Args:
            order: int64 [N], indices.
            batch_size: of all processes together, a multiple of their number; or how many each batch has.

        Returns:
            int64, this process's indices of one batch after the other. Where the last batch has fewer images than there
            are processes, those without any take its first one, which is not to count.
        """
        if self.size == 1:
            return order
        batches = [(batch, batch.tensor_split(self.size)[self.rank]) for batch in torch.split(order, batch_size)]  # type: ignore[arg-type]
        return torch.cat([own if len(own) else batch[:1] for batch, own in batches])

    def share_size(self, images: int) -> int:
        """Returns how many of a batch's images count on this process, see `share`."""
        return images // self.size + (self.rank < images % self.size)

    def share_sizes(self, sizes: Iterable[int]) -> list[int]:
        """Returns how many indices `share` returns of each batch, those that do not count included."""
        return [max(self.share_size(images), 1) for images in sizes]

    def sum(self, values: Tensor) -> Tensor:
        """Adds up a tensor over the processes, in place, and returns it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Gives every process the values of the main one, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agreed(self, value: T) -> T:
        """Returns the main process's value to all."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the main process go through the block before the others, who find what it has downloaded or made.

        Raises:
            MainFailedError: on the others, which do not enter the block, where the main process left it by an error.
        """
        if not self.main:
            if not self.agreed(False):
                raise MainFailedError("the main process has failed, and says why")
            yield
            return
        done = False
        try:
            yield
            done = True
        finally:
            self.agreed(done)

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


def choose_device(name: str = "auto") -> torch.device:
    """Returns the device to train on.

    Args:
        name: "cpu", "cuda", "cuda:1", ...; "auto" is a GPU where there is one. Under `torchrun` "cuda" is another GPU
            for each process.

    Raises:
        ValueError: there is no such device.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"{name!r} is not a device; choose from auto, cpu, cuda, cuda:0, ...") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"there is no training on {device.type}; choose from auto, cpu, cuda, cuda:0, ...")
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= torch.cuda.device_count():
            raise ValueError(
                f"there is no {device}: torch sees {torch.cuda.device_count()} CUDA devices; choose another"
            )
    return device


def parallel(model: nn.Module, world: World, device: torch.device, *, fsdp: bool = False) -> nn.Module:
    """Returns the model as its processes train it together; as it is, where it is trained by one alone.

    Args:
        model: on `device`.
        world: of `process_group`.
        device: where to train.
        fsdp: spreads its parameters over the processes that `torchrun` started, in place, rather than copying them.
    """
    if fsdp:
        return shard(model, device)
    return model if world.size == 1 else DistributedDataParallel(model)


def join_gloo(**options: Any) -> None:
    """Joins the other processes over gloo, with the options of `torch.distributed.init_process_group`."""
    dist.init_process_group("gloo", **options)
    atexit.register(_leave, dist.group.WORLD)


def _leave(group: dist.ProcessGroup | None) -> None:
    """Lets go of a group over gloo, at the end of Python.

    Whoever lets go of it last waits for its threads, which may wait for the GIL to free a tensor. Python gives the GIL
    up for that, a DistributedDataParallel with PyTorch 2.13 does not: Python has to be the last. And it has to be soon:
    threads that ask for the GIL of a Python that has ended abort the process. What is left of a model is a cycle.
    """
    gc.collect()


@contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Joins the other processes where `torchrun` started this one, until the end of the block.

    Raises:
        SystemExit: the main process has failed: this one ends without a word.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield ALONE
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        join_gloo()
    try:
        yield World.joined()
    except MainFailedError as error:
        raise SystemExit(1) from error
    finally:
        dist.destroy_process_group()
