"""Processes that train together over gloo, each of them the test file itself, run as a script."""

import datetime
import importlib
import os
import runpy
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist

import fusedopt
from fusedopt.training.distributed import join_gloo

OF_A_RUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment():
    """This one, with the package and what tests share on its path, and in no distributed run."""
    first = [Path(fusedopt.__file__).parents[1], Path(__file__).parent]
    path = os.pathsep.join([*map(str, first), os.environ.get("PYTHONPATH", "")])
    here = {name: value for name, value in os.environ.items() if name not in OF_A_RUN}
    return here | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_ranks(script, folder, world, timeout=120, *, apart=False):
    """Runs `script RANK FOLDER WORLD` for each rank, and returns what they saved as FOLDER/RANK.pt.

    The ranks are forked from one process that has imported what they need: so their addresses and hashes are the same.
    `apart` starts each by itself, for tests of an order in which all must do something.
    """
    if apart:
        commands = [[sys.executable, script, str(rank), str(folder), str(world)] for rank in range(world)]
    else:
        commands = [[sys.executable, __file__, script, str(folder), str(world)]]
    # Never a fork of this process: one that has run autograd threads may hang.
    processes = [subprocess.Popen(command, env=environment(), start_new_session=True) for command in commands]
    try:
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert codes == [0] * len(commands)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def _fork(script, folder, world):
    importlib.import_module("torch._dynamo")  # which a DTensor's first operation imports
    runpy.run_path(script)  # imports the rest of what the ranks will
    for rank in range(int(world)):
        if os.fork() == 0:
            sys.argv = [script, str(rank), folder, world]
            runpy.run_path(script, run_name="__main__")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # to take Python down would cost more than most tests
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(int(world))]
    sys.exit(any(codes))


def torchrun(world, *arguments, cwd, timeout=240):
    """Runs `torchrun ARGUMENTS` with so many processes, and returns its exit code, output and errors."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *launch, *arguments]
    launcher = subprocess.Popen(command, cwd=cwd, env=environment(), start_new_session=True, **pipes)
    try:
        output, errors = launcher.communicate(timeout=timeout)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)  # whatever is left of what it started
    return launcher.returncode, output, errors


@contextmanager
def gloo_group(rank, folder, world):
    """Joins the ranks in such a script."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    join_gloo(store=store, rank=rank, world_size=world, timeout=datetime.timedelta(seconds=60))
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def one_process(folder):
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 1), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    _fork(*sys.argv[1:])
