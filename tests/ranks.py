"""Processes that train together over gloo, each of them the test file itself, run as a script."""

import datetime
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist

import fusedopt
from fusedopt.training.distributed import join_gloo


def environment():
    """This one, with the package on its path."""
    path = os.pathsep.join([str(Path(fusedopt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_ranks(script, folder, world, timeout=120):
    """Runs `script RANK FOLDER WORLD` for each rank, and returns what they saved as FOLDER/RANK.pt."""
    # Processes of their own: a fork of a process that has run autograd threads may hang.
    processes = [
        subprocess.Popen([sys.executable, script, str(rank), str(folder), str(world)], env=environment())
        for rank in range(world)
    ]
    try:
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * world
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


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
