"""What is installed here."""

import platform
from importlib.metadata import version

import torch

from fusedopt._extension import _C, BUILT_FOR

VERSION = version("fusedopt")


def info() -> dict[str, str]:
    """What this installation is and runs on: versions, compiled back ends, instruction set in use, devices."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "fusedopt": VERSION,
        "torch": torch.__version__,
        "built for torch": BUILT_FOR,
        "python": platform.python_version(),
        "back ends": "cpu" if _C.GPU is None else f"cpu, {_C.GPU}",
        "instruction set": _C.isa(),
        "threads": str(torch.get_num_threads()),
        "devices": ", ".join(["cpu", *gpus]),
    }
