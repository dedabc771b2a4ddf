"""Builds fusedopt._C from csrc/. The metadata is in pyproject.toml."""

import os
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit(
        "fusedopt compiles against the torch that is installed: install torch first, then\n"
        "    pip install --no-build-isolation fusedopt"
    ) from error


def with_cuda() -> bool:
    """Whether to build the CUDA back end: FUSEDOPT_CUDA says so, else what torch and the toolkit allow."""
    asked = os.environ.get("FUSEDOPT_CUDA")
    if asked not in (None, "0", "1"):
        raise SystemExit(f"FUSEDOPT_CUDA must be 0 or 1, but it is {asked!r}")
    missing = None
    if not any(Path("csrc/cuda").glob("*")):
        missing = "this version of fusedopt has no CUDA back end"
    elif torch.version.cuda is None:
        missing = f"torch {torch.__version__} is built without CUDA"
    elif CUDA_HOME is None:
        missing = "no CUDA toolkit was found; set CUDA_HOME"
    if asked == "1" and missing:
        raise SystemExit(f"FUSEDOPT_CUDA=1, but {missing}")
    return asked != "0" and not missing


with_cuda()  # refuses what cannot be built

# No contraction: a multiply-add is fused where the source says so, on every device alike. Two math flags give up errno
# and floating-point traps, which would forbid vectorizing a square root or a select; the values stay IEEE. Unswitching
# would make a scalar copy of a loop for every choice in a rule.
compile_args = ["-std=c++20", "-O3", "-g0", "-Wall", "-fvisibility=hidden", "-fopenmp"]
compile_args += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-unswitch-loops"]
link_args = ["-fopenmp"]
if os.environ.get("FUSEDOPT_SANITIZE") == "1":
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    compile_args += ["-g1", "-fno-omit-frame-pointer", *sanitize]
    link_args += sanitize

setup(
    ext_modules=[
        CppExtension(
            "fusedopt._C",
            [str(path) for folder in ("csrc", "csrc/cpu") for path in sorted(Path(folder).glob("*.cpp"))],
            depends=[str(path) for path in Path("csrc").rglob("*.h")],
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
