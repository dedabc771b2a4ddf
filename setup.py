"""Builds fusedopt._C from csrc/. The metadata is in pyproject.toml."""

import os
import platform
from pathlib import Path

from setuptools import __version__ as setuptools_version
from setuptools import setup

# What [build-system] asks for does not count without build isolation, and an older one cannot read pyproject.toml.
if int(setuptools_version.partition(".")[0]) < 77:
    raise SystemExit(
        f"fusedopt needs setuptools 77 or later to build, not {setuptools_version}: pip install -U setuptools"
    )

# torch takes the folder above an nvcc on the PATH, which may be a wrapper without a toolkit around it.
if "CUDA_HOME" not in os.environ and Path("/usr/local/cuda/bin/nvcc").exists():
    os.environ["CUDA_HOME"] = "/usr/local/cuda"

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
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
    if torch.version.cuda is None:
        missing = f"torch {torch.__version__} is built without CUDA"
    elif CUDA_HOME is None:
        missing = "no CUDA toolkit was found; set CUDA_HOME"
    if asked == "1" and missing:
        raise SystemExit(f"FUSEDOPT_CUDA=1, but {missing}")
    return asked != "0" and not missing


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

# Files with an instruction set of their own, which only they may use.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mprefer-vector-width=512"]
ISA_FLAGS = {"csrc/cpu/avx2.cpp": AVX2, "csrc/cpu/avx512.cpp": AVX2 + AVX512}


class Build(BuildExtension):
    """Compiles the files with flags of their own first: BuildExtension has one set of flags for all."""

    def build_extensions(self) -> None:
        """Builds the extension."""
        x86 = platform.machine() in ("x86_64", "AMD64")
        for source, flags in ISA_FLAGS.items():
            arguments = compile_args + (flags if x86 else [])
            self.extensions[0].extra_objects += self.compiler.compile(
                [source], self.build_temp, None, None, False, arguments
            )
        super().build_extensions()


on_cpu = os.environ.get("FUSEDOPT_CUDA_ON_CPU") == "1"  # for tests: CPU tensors go through the CUDA kernels
cuda = with_cuda() and not on_cpu
sources = [str(path) for path in sorted(Path("csrc").rglob("*.c*")) if path.suffix in (".cpp", ".cu")]
sources = [path for path in sources if path not in ISA_FLAGS and (cuda or not path.startswith("csrc/cuda/"))]
macros = [("FUSEDOPT_CUDA", None)] if cuda else []

if on_cpu:
    sources += ["csrc/cuda/back_end.cpp", *map(str, Path("tests/cuda_on_cpu").glob("*.cpp"))]
    macros = [("FUSEDOPT_CUDA", None), ("FUSEDOPT_CUDA_ON_CPU", None), ("FUSEDOPT_CUDA_THREADS", "64")]
    folders = [Path("csrc").absolute(), Path("tests/cuda_on_cpu").absolute()]
    compile_args += ["-Wno-unknown-pragmas", *(f"-I{folder}" for folder in folders)]

if cuda:
    # Every generation from Turing on that the toolkit knows. torch's own default asks the GPU of this machine for its.
    # PTX of 9.0 is for what lies between (11.0), that of the newest for what comes after it.
    newest = ";10.0;12.0+PTX" if tuple(map(int, torch.version.cuda.split("."))) >= (12, 8) else ""
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0+PTX" + newest)
nvcc_args = ["-std=c++20", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "--threads=2"]
nvcc_args += ["-Xfatbin=-compress-all"]

setup(
    ext_modules=[
        (CUDAExtension if cuda else CppExtension)(
            "fusedopt._C",
            sources,
            depends=[str(path) for path in Path("csrc").rglob("*") if path.suffix in (".h", ".cuh")],
            define_macros=macros,
            extra_compile_args={"cxx": compile_args, "nvcc": nvcc_args},
            extra_link_args=link_args,
        )
    ],
    cmdclass={"build_ext": Build},
)
