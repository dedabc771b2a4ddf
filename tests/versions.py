"""Builds and tests fusedopt with pairs of Python and torch, from its source archive to a wheel in a new environment.

    python tests/versions.py python3.12=torch==2.13.0 python3.13=torch==2.13.0

For each: a source archive, a wheel of what it holds, the wheel in an environment of its own, and there, without the
sources, the tests in `TESTS` and the demo. Prints a row of the table in docs/versions.md for each. Environments stay in
--folder and are used again; without FUSEDOPT_CUDA=0 the CUDA kernels are built where there is a toolkit.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = (
    *("optim/test_numbers.py", "optim/test_state_dict.py", "optim/test_clipping.py", "optim/test_namespace.py"),
    *("schedulers/test_schedulers.py", "package/test_extension.py"),
)
NEEDED = ("numpy", "setuptools>=77", "wheel", "ninja", "pytest", "hypothesis", "expecttest")
HEAD = "| Python | PyTorch | tests | demo |\n| --- | --- | --- | --- |"


class Failure(Exception):
    """A command failed; the text is its output's end."""


def run(*command: object, cwd: Path, **variables: str) -> str:
    """Runs a command without this environment's Python settings and returns what it printed."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=inherited | variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failure("\n".join((done.stdout + done.stderr).splitlines()[-30:]))
    return done.stdout


def environment(python: str, torch: str, folder: Path) -> Path:
    """Makes an environment with torch and what builds and tests need, unless it is there, and returns its Python."""
    place = folder / f"{Path(python).name}-{torch}"
    inside = place / "bin" / "python"
    if not (place / "ready").exists():
        run(python, "-m", "venv", place, cwd=folder)
        run(inside, "-m", "pip", "install", "-q", *torch.split(), *NEEDED, cwd=folder)
        (place / "ready").touch()
    return inside


def wheel_from_archive(python: Path, work: Path) -> tuple[Path, Path]:
    """Packs the sources, unpacks them, and builds a wheel of them; returns the wheel and the unpacked folder."""
    run(python, "setup.py", "-q", "egg_info", "--egg-base", work, "sdist", "-d", work, cwd=ROOT)
    (archive,) = work.glob("fusedopt-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    source = work / archive.name.removesuffix(".tar.gz")
    build = ("-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", work, source)
    run(python, *build, cwd=work, FUSEDOPT_LOCAL_VERSION="1")
    (wheel,) = work.glob("*.whl")
    return wheel, source


def row_of(python: str, torch: str, folder: Path) -> str:
    """Returns the row of a pair; raises Failure."""
    inside = environment(python, torch, folder)
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    wheel, source = wheel_from_archive(inside, work)
    run(inside, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", wheel, cwd=work)
    run(inside, "-m", "pip", "install", "-q", f"{wheel}[examples]", cwd=work)
    elsewhere = work / "elsewhere"
    shutil.copytree(source / "tests", elsewhere / "tests")
    shutil.copytree(source / "benchmarks", elsewhere / "benchmarks")
    shutil.copy(source / "pyproject.toml", elsewhere)
    files = [f"tests/{name}" for name in TESTS]
    output = run(inside, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *files, cwd=elsewhere)
    outcome, *_ = output.splitlines()[-1].split(" in ")
    run(inside, "-m", "fusedopt", "demo", "--epochs", 1, cwd=elsewhere)
    versions = "import platform, torch; print(platform.python_version(), torch.__version__)"
    found = run(inside, "-c", versions, cwd=elsewhere).split()
    return f"| {found[0]} | {found[1]} | {outcome} | trains, draws and reports |"


def main() -> None:
    """Prints the table of the pairs that are given, and exits with 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="PYTHON=TORCH", help="python3.12=torch==2.13.0")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "versions", help="for environments and wheels")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(HEAD, flush=True)
    failed = False
    for pair in arguments.pairs:
        python, _, torch = pair.partition("=")
        try:
            print(row_of(python, torch, arguments.folder.resolve()), flush=True)
        except Failure as error:
            failed = True
            print(f"| {python} | {torch} | failed | |", flush=True)
            print(error, file=sys.stderr)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
