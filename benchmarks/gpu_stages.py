"""What `make gpu` runs, in the order of its worth: whatever is cut off, the rows of the goal table come first."""

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
NUMERICS = "tests/csrc/test_numerics.py"
WITHOUT_GRAPHS = "(test_overflows or test_lr_on_the_device) and not True"  # of tests/csrc/test_gpu.py
COMPILED = "test_a_compiled_model_and_training_step"  # which Inductor may take a minute for


@dataclass(frozen=True)
class Stage:
    """A command with the most seconds that it may take, and how many it is expected to take on an H200.

    Where ``optional``, its failure does not fail the run. A rehearsal runs ``stand_in``, which takes little time.
    """

    name: str
    command: Sequence[str]
    seconds: float
    expected: float = 0
    environment: dict[str, str] = field(default_factory=dict)
    optional: bool = False
    stand_in: Sequence[str] = ("true",)

    def rehearsed(self) -> "Stage":
        """What a rehearsal runs in its place."""
        collects = {"FUSEDOPT_COLLECT": "1", "FUSEDOPT_TEST_DEVICE": "cpu", "TORCH_COMPILE_DISABLE": "1"}
        return replace(self, command=self.stand_in, environment=self.environment | collects)


def stages(
    architecture: str | None, lines: Path, *, sets: Sequence[str], models: Sequence[str], device: str
) -> list[Stage]:
    """All stages, in order. Without an ``architecture`` (a compute capability such as 9.0) only the benchmark."""
    workers = _Workers(lines, device)
    large = [workers.steps(name, 60, 35, ["AdamW", "SGD-Nesterov", "RMSprop"]) for name in ("giant", "gpt2-xl")]
    bert = [workers.steps("bert-large", 60, 35)]
    small = [workers.steps(name, 45, 25) for name in ("resnet50", "thousand", "lenet")]
    halves = [workers.steps(name, 45, 25, half=True) for name in ("bert-large", "resnet50", "gpt2-xl")]
    formats = [workers.formats("gpt2-xl")]
    compiled = [workers.compiled(name) for name in ("resnet50", "lenet")]
    training = {name: workers.training(name) for name in models}
    chosen = {f"{kind} {name}" for kind in ("steps", "formats", "halves", "compiled") for name in sets}

    def of_sets(planned: Sequence[Stage]) -> list[Stage]:
        return [stage for stage in planned if stage.name in chosen]

    first = of_sets([*large, *bert, *small]) + [training[name] for name in models if name == "lenet"]
    last = [training[name] for name in models if name != "lenet"] + of_sets([*formats, *halves, *compiled])
    if architecture is None:
        return [*first, *last]
    build, tune, tests, sanitizers = _build(architecture), workers.tune(), _tests(), _sanitizers()
    return [build, tune, *first, *tests, *last, *sanitizers]


class _Workers:
    """The benchmarks' stages: a process each, that writes a line for every result as it comes."""

    def __init__(self, lines: Path, device: str) -> None:
        self._lines, self._device = lines, device

    def _stage(self, name: str, script: str, seconds: float, expected: float, arguments: Sequence[str]) -> Stage:
        command = [sys.executable, str(BENCHMARKS / script), *arguments, "--lines", str(self._lines)]
        tiny = [*command, "--device", "cpu", "--tiny"]
        return Stage(name, [*command, "--device", self._device], seconds, expected, stand_in=tiny)

    def steps(
        self, name: str, seconds: float, expected: float, optimizers: Sequence[str] = (), *, half: bool = False
    ) -> Stage:
        arguments = ["--set", name, "--dtypes", "bfloat16" if half else "float32"]
        arguments += ["--optimizers", *optimizers] if optimizers else []
        return self._stage(f"{'halves' if half else 'steps'} {name}", "gpu_steps.py", seconds, expected, arguments)

    def formats(self, name: str) -> Stage:
        arguments = ["--set", name, "--dtypes", "bfloat16", "--optimizers", "AdamW", "SGD-Nesterov"]
        arguments += ["--formats", "masters", "8bit", "stochastic"]
        return self._stage(f"formats {name}", "gpu_steps.py", 60, 35, arguments)

    def compiled(self, name: str) -> Stage:
        arguments = ["--set", name, "--compiled", "--optimizers", "AdamW", "--dtypes", "float32"]
        return replace(self._stage(f"compiled {name}", "gpu_steps.py", 60, 45, arguments), optional=True)

    def training(self, name: str) -> Stage:
        stage = self._stage(f"training {name}", "gpu_training.py", 60, 45, ["--model", name])
        # One of the optimizers: for each, Inductor compiles the model in every mode.
        return replace(stage, stand_in=[*stage.stand_in, "--optimizers", "AdamW"])

    def tune(self) -> Stage:
        return replace(self._stage("tune", "tune_gpu.py", 110, 80, []), optional=True)


def _build(architecture: str) -> Stage:
    command = [sys.executable, "setup.py", "-q", "egg_info", "build_ext", "--inplace"]
    environment = {"TORCH_CUDA_ARCH_LIST": architecture, "FUSEDOPT_CUDA": "1"}
    return Stage("build", command, 210, 100, environment, stand_in=[sys.executable, "setup.py", "-q", "--name"])


def _pytest(*arguments: str, parallel: bool = True) -> tuple[list[str], list[str]]:
    """The command, and one that only collects. Each failure is reported when it happens."""
    workers = ["-n", "8"] if parallel and importlib.util.find_spec("xdist") else []
    # Warnings of another torch than the one that CI has are no errors here.
    quiet = ["-q", "-W", "default", "-p", "no:cacheprovider", "-p", "no:benchmark", "-p", "report_failures"]
    command = [sys.executable, "-m", "pytest", *quiet]
    return [*command, *workers, *arguments], [*command, "--collect-only", *arguments]


def _marked() -> list[str]:
    """The files of the tests that are run again on a GPU; others may import what is not installed there."""
    root = BENCHMARKS.parent
    files = sorted((root / "tests").rglob("test_*.py"))
    return [str(file.relative_to(root)) for file in files if "pytest.mark.on_gpu" in file.read_text()]


def _tests() -> list[Stage]:
    on_cuda = {"FUSEDOPT_TEST_DEVICE": "cuda"}
    contracts = [file for file in _marked() if file != NUMERICS]
    cuda = [
        "tests/csrc/test_gpu.py",
        "tests/csrc/test_gpu_capture.py",
        "tests/csrc/test_real_gpu.py",
        "-k",
        f"not {COMPILED}",
    ]
    planned = [
        ("CUDA tests", cuda, 100, 60, {}),
        ("contracts on CUDA", [*contracts, "-m", "on_gpu"], 100, 60, on_cuda),
        ("numerics on CUDA", [NUMERICS, "-m", "on_gpu"], 80, 50, on_cuda),
        ("compiled on CUDA", ["tests/csrc/test_real_gpu.py", "-k", COMPILED], 90, 60, {}),
    ]
    made = []
    for name, arguments, seconds, expected, environment in planned:
        command, collect = _pytest(*arguments)
        optional = name == "compiled on CUDA"
        made.append(Stage(name, command, seconds, expected, environment, optional, stand_in=collect))
    return made


def _sanitizers() -> list[Stage]:
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    every_access = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # or an overrun would end in a neighbour's memory
    command, collect = _pytest("tests/csrc/test_gpu.py", "-k", WITHOUT_GRAPHS, parallel=False)
    return [
        Stage(
            f"compute-sanitizer {tool}",
            [program, "--tool", tool, "--error-exitcode", "9", *command],
            70,
            60,
            every_access,
            optional=True,
            stand_in=collect,
        )
        for tool in ("memcheck", "racecheck")
    ]
