"""`benchmarks/sharded.py` times every implementation on real processes, or on one alone, and says where it cannot."""

import subprocess
import sys
from pathlib import Path

import pytest

from fusedopt.benchmark.timing import interleave

pytestmark = pytest.mark.one_torch
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sharded.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=300)


def rows(*arguments: str) -> list[list[str]]:
    """The lines of the table, in words."""
    result = run("--ranks", "2", "--repeats", "1", *arguments)
    assert result.returncode == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines() if line.startswith(("SGD ", "AdamW ", "LAMB "))]


def test_every_implementation_has_a_row_and_ratios_to_torchs() -> None:
    found = rows("--alone", "--optimizers", "AdamW")
    assert [row[1:-3] for row in found] == [["fusedopt"], ["plain"], ["loop"], ["torch", "default"], ["torch", "fused"]]
    assert found[3][-2] == found[4][-1] == "1.00x"
    assert all(float(row[-3].replace(",", "")) > 0 for row in found)


def test_processes_with_collectives_step_together() -> None:
    assert [row[1] for row in rows("--clip", "--optimizers", "LAMB")] == ["fusedopt", "plain", "loop"]


def test_one_process_alone_cannot_take_sums() -> None:
    result = run("--alone", "--optimizers", "SGD", "--clip")
    assert result.returncode == 2
    assert "need all processes" in result.stderr


def test_batches_are_as_long_as_asked() -> None:
    samples = interleave({"short": object}, lambda run, calls: 0.001, repeats=2, seconds=4.0, batch=0.2)
    assert samples["short"].calls == 200
