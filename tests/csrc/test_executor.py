"""The executor of CUDA kernels on the CPU: quiet about right kernels, and planted bugs are caught."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_torch

SOURCES = Path(__file__).parents[1] / "cuda_on_cpu"
FLAGS = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]
BUILDS = {
    "plain": [],
    "ucontext": ["-DEXECUTOR_UCONTEXT"],  # how other CPUs switch
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-fsanitize=thread"],
}
ORDERS = ["forward", "reverse", "1", "2"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a sample in one of the builds, which is made when it is first asked for."""
    folder = tmp_path_factory.mktemp("executor")

    def built(build: str, sample: str) -> Path:
        program = folder / f"{sample}-{build}"
        if program.exists():
            return program
        objects = []
        for source in ("executor.cpp", "streams.cpp", f"{sample}.cu"):
            objects.append(folder / f"{source}-{build}.o")
            if not objects[-1].exists():
                compiler = ["g++", *FLAGS, "-DFUSEDOPT_CUDA_ON_CPU", *BUILDS[build]]
                command = [*compiler, "-x", "c++", "-c", SOURCES / source, "-o", objects[-1]]
                subprocess.run(command, check=True)
        subprocess.run(["g++", *BUILDS[build], *objects, "-o", program, "-pthread"], check=True)
        return program

    def run(build: str, *arguments: str, order: str = "forward", sample: str = "sample") -> subprocess.CompletedProcess:
        options = "halt_on_error=1:atexit_sleep_ms=0"
        done = subprocess.run(
            [built(build, sample), *arguments],
            env={**os.environ, "FUSEDOPT_EXECUTOR_ORDER": order, "TSAN_OPTIONS": options, "LD_PRELOAD": ""},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if "unexpected memory mapping" in done.stderr:
            pytest.skip("g++'s ThreadSanitizer does not run on this kernel: vm.mmap_rnd_bits is above 28")
        return done

    return run


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("kernel", ["scale", "sum", "seen"])
def test_right_kernels_pass(run: Run, kernel: str, build: str, order: str) -> None:
    done = run(build, kernel, order=order)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout + done.stderr


WRONG = r"sample\.cu:\d+: wrong"  # the result
RACE = "ThreadSanitizer: data race"
OVERFLOW = "AddressSanitizer: heap-buffer-overflow"

# The kernel, the bug, the build that catches it whatever the order, and what that says.
CAUGHT = [
    ("scale", "out_of_bounds", "asan", OVERFLOW),
    ("scale", "misaligned", "asan", "misaligned address .* requires 16 byte alignment"),
    ("scale", "overlapping_chunks", "plain", WRONG),
    ("scale", "overlapping_chunks", "tsan", RACE),
    ("sum", "missing_barrier", "tsan", RACE),
    ("sum", "missing_barrier_before_reuse", "tsan", RACE),
    ("sum", "missing_fence_before_atomic", "tsan", RACE),
    ("sum", "missing_fence_after_atomic", "tsan", RACE),
    ("sum", "shared_overrun", "asan", "index 2 out of bounds"),
    ("sum", "shared_overrun_by_pointer", "asan", OVERFLOW),
    (
        "sum",
        "divergent_barrier",
        "plain",
        r"sample\.cu:\d+: waits at another barrier than thread 0, which is at",
    ),
    ("sum", "early_return", "plain", r"sample\.cu:\d+: waits at a barrier, 32 threads have returned before it"),
    ("sum", "wrong_mask", "plain", r"sample\.cu:\d+: waits for lanes ffffffff of its warp, where only 0000ffff are"),
    ("sum", "lane_outside_mask", "plain", r"sample\.cu:\d+: not in its own mask 0000ffff"),
    ("sum", "source_outside_mask", "plain", r"sample\.cu:\d+: reads from lane \d+, not in mask 0000ffff"),
    ("sum", "other_shuffle", "plain", r"sample\.cu:\d+: with mask ffffffff meets lane \d at line \d+"),
]


@pytest.mark.parametrize(("kernel", "bug", "build", "message"), CAUGHT, ids=lambda x: x if x.isidentifier() else "")
def test_planted_bugs_are_caught(run: Run, kernel: str, bug: str, build: str, message: str) -> None:
    for order in ORDERS:
        done = run(build, kernel, bug, order=order)
        assert done.returncode != 0, order
        assert re.search(message, done.stdout + done.stderr), (order, done.stdout, done.stderr)


def test_a_missing_barrier_shows_in_the_result_when_the_reader_comes_first(run: Run) -> None:
    """Without ThreadSanitizer, that is: what was not written yet is poison."""
    assert run("plain", "sum", "missing_barrier", order="forward").returncode != 0
    assert run("plain", "sum", "missing_barrier", order="reverse").returncode == 0


def test_launches_from_several_os_threads(run: Run) -> None:
    for build in ("plain", "asan", "tsan"):
        done = run(build, "os_threads")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("scenario", ["arguments<32764>", "counters", "capture"])
def test_host_side(run: Run, scenario: str) -> None:
    done = run("plain", scenario, sample="sample_host")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("arguments<32765>", "a launch with 32765 bytes of arguments, 32764 at most"),
        ("alignment", "a launch with 32765 bytes of arguments"),
        ("no_blocks", "a launch of 0 blocks of 1 threads"),
        ("many_threads", "a launch of 1 blocks of 1025 threads"),
        ("shared", "49153 bytes of shared memory, 49152 at most"),
        ("capture_copy_in", "a copy of 4 bytes between the device and pageable memory is captured"),
        ("capture_copy_out", "a copy of 4 bytes between the device and pageable memory is captured"),
        ("capture_wait", "a wait for a stream that is captured"),
        ("capture_twice", "a capture within a capture"),
        ("capture_default", "the default stream cannot be captured"),
    ],
)
def test_what_a_host_must_not_do(run: Run, scenario: str, message: str) -> None:
    done = run("plain", scenario, sample="sample_host")
    assert done.returncode < 0
    assert message in done.stderr
    assert "wrong" not in done.stdout


def test_order(run: Run) -> None:
    def order(name: str) -> list[int]:
        return [int(i) for i in run("plain", "order", order=name, sample="sample_host").stdout.split()]

    threads = list(range(12))
    assert order("forward") == threads
    assert order("reverse") == threads[::-1]
    shuffled = order("1")
    assert shuffled == order("1") != order("2")
    assert sorted(shuffled) == threads
    blocks = [shuffled[i : i + 4] for i in (0, 4, 8)]
    assert all(len({thread // 4 for thread in block}) == 1 for block in blocks)  # one block after the other
    assert len({tuple(thread % 4 for thread in block) for block in blocks}) > 1  # each in an order of its own
    assert any(order(seed)[0] >= 4 for seed in "1234")
    assert "not forward, reverse or a number" in run("plain", "order", order="random", sample="sample_host").stderr
