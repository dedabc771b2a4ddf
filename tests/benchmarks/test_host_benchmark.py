"""`benchmarks/host.py`: in the executor's build it times a few tensors, elsewhere it says what it needs."""

from __future__ import annotations

import json
from pathlib import Path

import host
import pytest

from fusedopt import _C

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


@pytest.mark.skipif(_C.GPU == "cpu", reason="this is the build that it needs")
def test_another_build_is_refused() -> None:
    with pytest.raises(SystemExit, match="make bench-host"):
        host.main(["--sets", "lenet"])


@pytest.mark.below_python
@pytest.mark.skipif(_C.GPU != "cpu", reason="runs where the GPU is the CPU")
def test_a_row_for_each_class_and_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "lines"
    host.main(["--sets", "lenet", "--classes", "AdamW", "LAMB", "--seconds", "0", "--lines", str(lines)])
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [(row["optimizer"], row["mode"]) for row in rows] == [
        *(("AdamW", mode) for mode in host.MODES),
        ("LAMB", "eager"),
    ]
    assert set(rows[0]["others"]) == {"fused", "foreach", "for-loop"}
    assert all(row["step"]["median"] > 0 and row["walk"] > 0 and row["run"] > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)
    # The kernels run again afterwards.
    optimizer = host.ours("AdamW", 1, "eager")
    (p,) = optimizer.param_groups[0]["params"]
    before = p.detach().clone()
    optimizer.step()
    assert not before.equal(p)
