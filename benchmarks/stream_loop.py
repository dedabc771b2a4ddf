"""The hand-written loop with whose bandwidth a step is compared: compiles and calls ``stream_loop.cpp``."""

import ctypes
import functools
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from fusedopt.benchmark.implementations import Pass

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


@functools.cache
def _library() -> ctypes.CDLL:
    """Compile the loop (a quarter of a second, for this very machine, so nothing is kept) and load it."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "stream_loop.so"
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(target)], check=True)
        library = ctypes.CDLL(str(target))
    library.stream_pass.argtypes = (
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_int,
    )
    library.stream_pass.restype = ctypes.c_float
    return library


class StreamLoop:
    """Calling it moves as much memory as one step of a rule, in the rule's passes, over flat arrays."""

    def __init__(self, passes: Sequence[Pass], elements: int, dtype: torch.dtype, threads: int) -> None:
        # Arrays of as many bytes as the rule's operands, whatever their type: the loop itself adds float32.
        self.elements = elements * dtype.itemsize // 4
        self.passes = tuple(passes)
        self.threads = threads
        self.bytes = 4 * self.elements * sum(reads + writes for reads, writes in passes)
        self.arrays = [torch.rand(self.elements) + 0.5 for _ in range(max(reads for reads, _ in passes))]
        self._pointers = (ctypes.c_void_p * len(self.arrays))(*(array.data_ptr() for array in self.arrays))
        self._call = _library().stream_pass
        for reads, writes in self.passes:
            if math.isnan(self._call(self._pointers, reads, writes, self.elements, threads)):
                raise ValueError(f"stream_loop.cpp has no pass with {reads} reads and {writes} writes")

    def __call__(self) -> None:
        """Run every pass once."""
        for reads, writes in self.passes:
            self._call(self._pointers, reads, writes, self.elements, self.threads)
