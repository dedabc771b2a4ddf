"""native() and FUSEDOPT_DISABLE, for how long and for whom they hold."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from pair import (
    make_params,
    set_grads,
)

import fusedopt

pytestmark = [pytest.mark.steps, pytest.mark.on_gpu]


def test_native_ends_with_the_block_and_is_of_this_thread() -> None:
    params = make_params()
    opt = fusedopt.AdamW(params)
    set_grads(params, 0)
    with pytest.raises(KeyError), fusedopt.native():
        raise KeyError
    with fusedopt.native():
        thread = threading.Thread(target=opt.step)
        thread.start()
        thread.join()
    assert {e.path for e in opt.explain()} == {"fused"}


@pytest.mark.parametrize(("value", "path"), [("1", "torch"), ("0", "fused"), (None, "fused")])
def test_environment_variable(value: str | None, path: str) -> None:
    code = """if True:
        import torch, fusedopt
        p, q = (torch.nn.Parameter(torch.linspace(0, 1, 50)) for _ in range(2))
        ours, theirs = fusedopt.AdamW([p]), torch.optim.AdamW([q])
        p.grad = q.grad = torch.linspace(1, 2, 50)
        for _ in range(3):
            ours.step(), theirs.step()
        print(ours.explain()[0].path, torch.equal(p, q))
    """
    env = {k: v for k, v in os.environ.items() if k != "FUSEDOPT_DISABLE"} | (
        {"FUSEDOPT_DISABLE": value} if value else {}
    )
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out.split()[0] == path
    assert path == "fused" or out.split()[1] == "True"
