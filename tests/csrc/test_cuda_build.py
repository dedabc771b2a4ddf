"""What nvcc made of the kernels, read from the extension: no GPU is needed for that."""

import os
import re
import subprocess
from importlib.metadata import files
from pathlib import Path

import pytest

from fusedopt import _C

pytestmark = pytest.mark.one_torch

if _C.GPU != "cuda":
    pytest.skip("this build has no CUDA kernels", allow_module_level=True)

MAX_REGISTERS = 64  # of 65,536, so that 1,024 threads share a multiprocessor
RULES = ("sgd", "sgd_momentum", "rmsprop", "adagrad", "adam", "lamb", "swats")


def cuobjdump(*arguments: str) -> str:
    tools = [Path(str(f.locate())) for name in ("cuobjdump", "nvdisasm") for f in files(f"nvidia-cuda-{name}") or ()]
    folders = {str(tool.parent) for tool in tools if tool.name in ("cuobjdump", "nvdisasm")}
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    command = ["cuobjdump", *arguments, _C.__file__]
    return subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def resources() -> list[tuple[str, str, int, int]]:
    """Of every kernel: GPU, mangled name, registers, bytes of stack."""
    text = cuobjdump("-res-usage")
    rows = []
    for part in re.split(r"^arch = ", text, flags=re.MULTILINE)[1:]:
        gpu = part.split()[0]
        for name, registers, stack in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", part):
            rows.append((gpu, name, int(registers), int(stack)))
    return rows


def test_every_generation(resources: list[tuple[str, str, int, int]]) -> None:
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    generations = {gpu for gpu, *_ in resources}
    assert generations >= {"sm_75", "sm_80", "sm_90"} or asked
    per_generation = {gpu: sum(other == gpu for other, *_ in resources) for gpu in generations}
    assert len(set(per_generation.values())) == 1


def test_no_spills(resources: list[tuple[str, str, int, int]]) -> None:
    assert not [row for row in resources if row[3]]


def test_registers_leave_room_for_two_blocks(resources: list[tuple[str, str, int, int]]) -> None:
    apply = re.compile(r"5apply.*?4FormE(\d)E")
    kernels = [(row, int(m[1])) for row in resources if (m := apply.search(row[1]))]
    # Double needs more registers, and so do three coded operands, and SWATS' sums: there one block has them all.
    few = re.compile(r"3sgdE")
    narrow = [row for row, form in kernels if form == 0 or (form == 2 and few.search(row[1]))]
    narrow = [row for row in narrow if "Swats" not in row[1]]
    assert len(narrow) > 100 * len({row[0] for row in resources}) / 5
    assert max(row[2] for row in narrow) <= MAX_REGISTERS


@pytest.mark.parametrize("form", [0, 2], ids=["float", "coded"])
def test_sixteen_byte_accesses(resources: list[tuple[str, str, int, int]], form: int) -> None:
    newest = max({gpu for gpu, *_ in resources}, key=lambda gpu: int(gpu[3:]))
    of_form = re.compile(rf"5apply.*?4FormE{form}ELi{4096 if form else 1024}E")
    kernels = {name for gpu, name, *_ in resources if gpu == newest and of_form.search(name)}
    assert len(kernels) >= 10
    dumped = re.split(r"Function : (\S+)", cuobjdump("-sass", "-arch", newest, "-fun", ",".join(kernels)))
    codes = dict(zip(dumped[1::2], dumped[2::2], strict=True))
    assert codes.keys() == kernels
    for name, code in codes.items():
        assert "LDG.E.128" in code, name
        assert "STG.E.128" in code or "lars" in name, name  # whose first pass only reads
