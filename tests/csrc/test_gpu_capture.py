"""Steps in CUDA graphs: what a replay does, what a graph keeps, and on which stream its memory is made."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from cases import BF16, BY_NAME, F16, F32, Case
from gpu_problem import Pair, each_case, make_params, set_grads
from torch import Tensor

import fusedopt
from fusedopt import _C
from fusedopt.optim._codecs import tensors_in

pytestmark = pytest.mark.steps

if not gpu.AVAILABLE:
    pytest.skip("no GPU; make test runs this on the CPU in a build of its own", allow_module_level=True)


def test_a_switch_in_a_replay() -> None:
    """Captured in its Adam phase, a group that switches is one of SGD in the replays that follow."""
    pair = Pair(BY_NAME["swats-switch"])
    assert pair.ours.phase == ["adam"]
    graph, grads = pair.capture(), pair.static
    for i in range(1, 4):
        pair.replay(graph, grads, i)
        assert pair.ours.phase == pair.theirs.phase == ["sgd"]
        assert torch.equal(*(o.param_groups[0]["switch"] for o in (pair.ours, pair.theirs)))


@pytest.mark.parametrize("clip", [None, 0.5])
@each_case
def test_capture(case: Case, clip: float | None) -> None:
    """Replays between eager steps with fresh gradients, and a second graph in turn with the first."""
    pair = Pair(case, max_grad_norm=clip)
    first, grads = pair.capture(), pair.static
    pair.replay(first, grads, 1)
    pair.replay(first, grads, 2)
    pair.eager(3)
    pair.replay(first, grads, 4)
    pair.grads(5, in_place=False)
    second, others = pair.capture(), pair.static
    for i in range(6, 10):
        pair.replay(*((first, grads) if i % 2 else (second, others)), i)
    if clip is not None:
        norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in pair.params]))
        torch.testing.assert_close(pair.ours.grad_norm, norm)


def test_a_replay_is_one_launch() -> None:
    pair = Pair(BY_NAME["adamw"])
    gpu.work(pair.ours.step)  # a profiler that is first started later may not see into the graph
    graph = pair.capture()
    assert gpu.work(graph.replay) == (1, 0, 0)


@each_case
def test_capture_with_an_lr_that_changes(case: Case) -> None:
    lr = torch.tensor(0.1, device=gpu.DEVICE)
    pair = Pair(case, lr=lr)
    graph, grads = pair.capture(), pair.static
    for i in range(3):
        lr.mul_(0.5)
        pair.replay(graph, grads, i)


@each_case
def test_a_graph_outlives_changes_of_the_optimizer(case: Case) -> None:
    """`add_param_group` and `load_state_dict` make a new plan; an earlier graph goes on with what it captured."""
    pair = Pair(case)
    graph, grads = pair.capture(), pair.static
    pair.replay(graph, grads, 1)
    extra, twin = make_params([(50,)]), make_params([(50,)])
    for optimizer, new in ((pair.ours, extra), (pair.theirs, twin)):
        optimizer.add_param_group({"params": new})
        set_grads(new, 3)
    pair.eager(2)
    for new in (*extra, *twin):
        new.grad = None  # the graph knows nothing of it
    pair.replay(graph, grads, 4)

    saved = {id(p): {k: v.clone() for k, v in pair.ours.state[p].items()} for p in pair.params}
    states = {id(p): dict(pair.ours.state[p]) for p in pair.params}  # what the graph updates
    pair.ours.load_state_dict(pair.ours.state_dict())
    pair.eager(5)
    for p in pair.params:
        for name, value in states[id(p)].items():
            value.copy_(saved[id(p)][name])
            pair.ours.state[p][name] = value
    for p, q in zip(pair.params, pair.twins, strict=True):
        q.data.copy_(p.data)
        for name, value in pair.ours.state[p].items():
            pair.theirs.state[q][name].copy_(value)
    pair.replay(graph, grads, 6)


FORMATS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float16": (F16, {}),
    "bfloat16 by chance, with an average": (BF16, {"stochastic_rounding": True, "ema_decay": 0.9}),
    "masters": (F16, {"master_weights": True, "state_dtype": BF16}),
    "8 bits": (F32, {"state_dtype": "8bit", "min_8bit_size": 0, "max_grad_norm": 0.5}),
    "8 bits by chance beside masters": (
        BF16,
        {"master_weights": True, "state_dtype": "8bit", "stochastic_rounding": True, "ema_decay": 0.9},
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_replays_store_what_steps_do(name: str) -> None:
    """Bit for bit, those that an overflow skips among them."""
    dtype, options = FORMATS[name]
    found_inf = torch.zeros((), device=gpu.DEVICE)
    found = []
    for captured in (False, True):
        params = make_params([(3,), (20_000,), (64, 33)], dtype=dtype)
        set_grads(params, 0)
        opt = fusedopt.AdamW(params, lr=0.01, capturable=True, **options)
        opt.grad_scale, opt.found_inf = torch.tensor(2.0, device=gpu.DEVICE), found_inf  # type: ignore[attr-defined]
        opt.step()
        step = gpu.Graph(opt.step).replay if captured else opt.step
        for i in range(1, 6):
            found_inf.fill_(float(i == 3))
            set_grads(params, i, in_place=True)
            step()
        states = (v for p in params for v in opt.state[p].values())
        found.append([*(p.detach() for p in params), *(t for state in states for t in tensors_in(state))])
        assert opt.state[params[0]]["step"] == 5
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(*(t.flatten().view(torch.uint8) for t in (ours, theirs)))  # of rests some would be NaN


def test_capturing_without_capturable_is_refused() -> None:
    params = make_params()
    set_grads(params, 0)
    ours = fusedopt.AdamW(params)
    ours.step()
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="param_groups' capturable is False"):
        gpu.Graph(ours.step)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert all(ours.state[p]["step"] == 1 for p in params)


# ---- What a graph keeps ----


def test_many_captures() -> None:
    """More than torch has streams: its pool goes round, and one capture after the other is on each of them."""
    params = make_params([(3,), (40,)])
    set_grads(params, 0)
    ours = fusedopt.AdamW(params, capturable=True, max_grad_norm=1.0)
    ours.step()
    for i in range(200):
        graph = gpu.Graph(ours.step)
        if i % 50 == 0:
            graph.replay()
    assert float(ours.state[params[0]]["step"]) == 5
    ours.step()
    assert {e.path for e in ours.explain()} == {"fused"}


class Captured:
    """A captured step whose optimizer can go, with what the step needs that is the user's: tensors."""

    def __init__(self, case: Case, groups: int = 1) -> None:
        self.params = make_params([(3,), (40,), (20_000,)] * groups)
        self.optimizer = case.make(
            [{"params": self.params[i::groups], "lr": 0.1 / (i + 1)} for i in range(groups)], capturable=True
        )
        set_grads(self.params, 0)
        self.optimizer.step()
        self.grads = [p.grad for p in self.params]
        self.states = [dict(self.optimizer.state[p]) for p in self.params]
        self.groups = [dict(group) for group in self.optimizer.param_groups]  # with the memory of SWATS
        self.graph = gpu.Graph(self.optimizer.step)


def overwrite_freed_memory() -> list[Tensor]:
    """Memory of the sizes that tables have, zeroed: what was freed before lies in some of it."""
    return [torch.zeros(size, dtype=torch.uint8, device=gpu.DEVICE) for size in range(64, 8192, 16) for _ in range(4)]


@pytest.mark.parametrize("clip", [None, 0.5])
@each_case
def test_a_graph_keeps_the_tables_that_it_reads(case: Case, clip: float | None) -> None:
    """As a graph of torch's optimizers does, it needs what lies in the parameters and in the state_dict, but nobody has
    to keep the optimizer for what it has made besides.
    """
    alone, twin = (Captured(replace(case, max_grad_norm=clip)) for _ in range(2))
    alone.optimizer = None
    gc.collect()
    junk = overwrite_freed_memory()
    for i in range(1, 4):
        set_grads(alone.params, i, in_place=True)
        set_grads(twin.params, i, in_place=True)
        alone.graph.replay()
        twin.optimizer.step()
        for p, q in zip(alone.params, twin.params, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=0)
        for state, p in zip(alone.states, twin.params, strict=True):
            torch.testing.assert_close(state, dict(twin.optimizer.state[p]), rtol=0, atol=0)
    assert junk


def test_a_graph_keeps_rows_that_do_not_fit_into_its_launches() -> None:
    captured = Captured(BY_NAME["adamw"], groups=400)
    before = [p.detach().clone() for p in captured.params]
    captured.optimizer = None
    gc.collect()
    junk = overwrite_freed_memory()
    captured.graph.replay()
    assert not any(torch.equal(p, b) for p, b in zip(captured.params, before, strict=True))
    assert all(bool(p.isfinite().all()) for p in captured.params)
    assert junk


@pytest.mark.skipif(not gpu.ON_CPU, reason="of a real graph nobody can count what it keeps")
def test_what_graphs_keep_goes_with_them() -> None:
    gc.collect()
    before = _C.executor.retained()
    params = make_params()
    set_grads(params, 0)
    ours = fusedopt.AdamW(params, capturable=True, max_grad_norm=1.0)
    ours.step()
    ours.step()
    assert _C.executor.retained() == before
    graphs = [gpu.Graph(ours.step) for _ in range(3)]
    each = (_C.executor.retained() - before) // 3
    assert each == 2  # the table, and where the norm is found
    del graphs[1:]
    assert _C.executor.retained() == before + each
    del ours
    gc.collect()
    assert _C.executor.retained() == before + each
    del graphs
    assert _C.executor.retained() == before


@pytest.mark.skipif(not gpu.ON_CPU, reason="the memory of a GPU is not the process's")
def test_captures_leave_no_memory_behind() -> None:
    """Neither the plan nor what a graph kept grows with captures whose graphs are gone."""
    params = make_params([(3,)] * 20_000)
    set_grads(params, 0)
    ours = fusedopt.SGD(params, momentum=0.9, capturable=True)
    ours.step()
    table = 64 * len(params)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(5):
        gpu.Graph(ours.step)
    start = resident()
    for _ in range(40):
        gpu.Graph(ours.step)
    assert resident() - start < 10 * table
