"""Builds fusedopt._C from csrc/. The metadata is in pyproject.toml."""

import os
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit(
        "fusedopt compiles against the torch that is installed: install torch first, then\n"
        "    pip install --no-build-isolation fusedopt"
    ) from error

DEBUG = os.environ.get("FUSEDOPT_SANITIZE") == "1"
WITH_CUDA = os.environ.get("FUSEDOPT_CUDA", "0")
if WITH_CUDA not in ("0", "1"):
    raise SystemExit(f"FUSEDOPT_CUDA must be 0 or 1, but it is {WITH_CUDA!r}")

# No contraction: a multiply-add is fused where the source says so, on every device alike. The two math flags give up
# errno and floating-point traps, which would forbid vectorizing a square root or a select; the values stay IEEE.
compile_args = ["-std=c++20", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-unswitch-loops", "-fopenmp"]
compile_args += ["-Wall", "-fvisibility=hidden"]
link_args = ["-fopenmp"]
if DEBUG:
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    compile_args += ["-g1", *sanitize]
    link_args += sanitize

setup(
    ext_modules=[
        CppExtension(
            "fusedopt._C",
            [str(path) for path in sorted(Path("csrc").glob("*.cpp")) + sorted(Path("csrc/cpu").glob("*.cpp"))],
            depends=[str(path) for path in Path("csrc").rglob("*.h")],
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
