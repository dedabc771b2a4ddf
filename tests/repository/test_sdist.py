"""The source archive has everything that the extension is built from and the tests need."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_torch

ROOT = Path(__file__).parents[2]
FOLDERS = ("csrc", "fusedopt", "tests", "benchmarks", "docs")
LEFT_OUT = {".so", ".pyc"}


@pytest.mark.skipif(not (ROOT / "MANIFEST.in").exists(), reason="a copy of the tree without its packaging files")
def test_the_archive_has_every_source_file(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in LEFT_OUT
    }
    assert wanted - packed == set()
    assert {"setup.py", "build_backend.py", "pyproject.toml", "README.md", "LICENSE", "Makefile"} <= packed
    assert not any(Path(name).suffix in LEFT_OUT for name in packed)
