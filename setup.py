"""Builds fusedopt._C from csrc/. The metadata is in pyproject.toml."""

import os
import platform
import re
import shlex
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

try:
    from setuptools import __version__ as setuptools_version
    from setuptools import setup
    from setuptools.command.egg_info import egg_info
except ModuleNotFoundError as error:
    raise SystemExit(
        "fusedopt needs setuptools 77 or later to build, and there is none: pip install setuptools"
    ) from error

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
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise SystemExit(
        "fusedopt compiles against the torch that is installed, and there is none here, or an isolated build hides it: "
        "pip install torch setuptools ninja && pip install --no-build-isolation ."
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


on_cpu = os.environ.get("FUSEDOPT_CUDA_ON_CPU") == "1"  # for tests: CPU tensors go through the CUDA kernels

# No contraction: a multiply-add is fused where the source says so, on every device alike. Two math flags give up errno
# and floating-point traps, which would forbid vectorizing a square root or a select; the values stay IEEE. Unswitching
# would make a scalar copy of a loop for every choice in a rule. Vectors wider than a target's, whose ABI is in doubt,
# are passed to what is inlined only.
compile_args = ["-std=c++20", "-O1" if on_cpu else "-O3", "-g0", "-Wall", "-fvisibility=hidden", "-fopenmp"]
compile_args += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-unswitch-loops", "-Wno-psabi"]
link_args = ["-fopenmp"]
if os.environ.get("FUSEDOPT_SANITIZE") == "1":
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    compile_args += ["-g1", "-fno-omit-frame-pointer", *sanitize]
    link_args += sanitize

# Files with an instruction set of their own, which only they may use.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mprefer-vector-width=512"]
ISA_FLAGS = {"csrc/cpu/baseline.cpp": [], "csrc/cpu/avx2.cpp": AVX2, "csrc/cpu/avx512.cpp": AVX2 + AVX512}


def check_compiler() -> None:
    """Exits with a line where there is no compiler, or one that lacks what is needed, or no headers of Python's."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise SystemExit(f"fusedopt needs Python's headers to build, and {header} is missing: apt install python3-dev")
    compiler = os.environ.get("CXX", "c++")  # as torch chooses it
    mend = "it needs GCC 11 or later, or another one for C++20 and OpenMP: apt install g++, or set CXX"
    command = [*shlex.split(compiler), "-std=c++20", "-fopenmp", "-fsyntax-only", "-x", "c++", "-"]
    source = "#include <concepts>\n#include <omp.h>\n#include <span>\nstatic_assert(std::integral<int>);"
    try:
        subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    except OSError as error:
        text = f"fusedopt cannot be built without a C++ compiler ({compiler}: {error.strerror}); {mend}"
        raise SystemExit(text) from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.splitlines() or [f"exit code {error.returncode}"]
        reason = next((line for line in said if "error" in line), said[0])
        raise SystemExit(f"fusedopt cannot be built with {compiler} ({reason}); {mend}") from error


LOCAL_VERSION = os.environ.get("FUSEDOPT_LOCAL_VERSION") == "1"  # make wheel
MINOR = ".".join(torch.__version__.split(".")[:2])


class Metadata(egg_info):
    """Says in the version of a wheel that goes elsewhere what it was built for."""

    def finalize_options(self) -> None:
        """Adds to the version; an option of setup() would not, as a source archive brings a setup.cfg with its own."""
        if LOCAL_VERSION:
            back_end = f"cu{torch.version.cuda.replace('.', '')}" if cuda else "cpu"
            self.tag_build = f"+torch{MINOR}.{back_end}"
        super().finalize_options()


class Build(BuildExtension):
    """Compiles the files with flags of their own first: BuildExtension has one set of flags for all.

    Those that include torch are compiled as one, as its headers take most of the time.
    """

    def finalize_options(self) -> None:
        """Never takes an extension for up to date: torch may be another one than that which it was built for."""
        super().finalize_options()
        self.force = True

    def join_sources(self) -> None:
        """Puts one file that includes them in the place of the C++ sources that are left."""
        extension = self.extensions[0]
        joined = [source for source in extension.sources if source.startswith("csrc/") and source.endswith(".cpp")]
        file = Path(self.build_temp, "joined.cpp")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f'#include "{Path(source).absolute()}"\n' for source in joined))
        extension.sources = [str(file), *(source for source in extension.sources if source not in joined)]

    def build_extensions(self) -> None:
        """Builds the extension."""
        check_compiler()
        self.join_sources()
        own = ISA_FLAGS if platform.machine() in ("x86_64", "AMD64") else dict.fromkeys(ISA_FLAGS, ())

        def compiled(source: str) -> list[str]:
            arguments = [*compile_args, *own[source]]
            return self.compiler.compile([source], self.build_temp, None, None, False, arguments)

        with ThreadPoolExecutor() as pool:  # ninja compiles what follows only
            self.extensions[0].extra_objects += chain.from_iterable(pool.map(compiled, ISA_FLAGS))
        super().build_extensions()


cuda = with_cuda() and not on_cpu
sources = [str(path) for path in sorted(Path("csrc").rglob("*.c*")) if path.suffix in (".cpp", ".cu")]
sources = [path for path in sources if path not in ISA_FLAGS and (cuda or not path.startswith("csrc/cuda/"))]
macros = [("FUSEDOPT_TORCH", torch.__version__)] + [("FUSEDOPT_CUDA", None)] * cuda

if on_cpu:
    sources += ["csrc/cuda/back_end.cpp", *map(str, Path("tests/cuda_on_cpu").glob("*.cpp"))]
    macros += [("FUSEDOPT_CUDA", None), ("FUSEDOPT_CUDA_ON_CPU", None), ("FUSEDOPT_CUDA_THREADS", "64")]
    folders = [Path("csrc").absolute(), Path("tests/cuda_on_cpu").absolute()]
    compile_args += ["-Wno-unknown-pragmas", *(f"-I{folder}" for folder in folders)]

if cuda:
    # Every generation from Turing on that the toolkit knows. torch's own default asks the GPU of this machine for its.
    # PTX of 9.0 is for what lies between (11.0), that of the newest for what comes after it.
    newest = ";10.0;12.0+PTX" if tuple(map(int, torch.version.cuda.split("."))) >= (12, 8) else ""
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0+PTX" + newest)
nvcc_args = ["-std=c++20", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "--threads=2"]
nvcc_args += ["-Xfatbin=-compress-all"]

# On a package index, links to files beside the README lead nowhere: their text stays.
readme = re.sub(r"\[([^]]*)\]\((?!https?:|#)[^)]*\)", r"\1", Path("README.md").read_text())

setup(
    install_requires=["numpy", "typing_extensions>=4.4", f"torch=={MINOR}.*" if LOCAL_VERSION else "torch>=2.11"],
    long_description=readme,
    long_description_content_type="text/markdown",
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
    cmdclass={"build_ext": Build, "egg_info": Metadata},
)
