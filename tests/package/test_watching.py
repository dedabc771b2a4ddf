"""What `fusedopt run` measures, by clocks that the tests turn themselves."""

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

import fusedopt
from fusedopt import watching
from fusedopt.benchmark import timing
from fusedopt.watching import Time, Watch, all_fused, report


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still: a list whose one number is the time."""
    now = [100.0]
    for module in (watching, timing):
        monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    return now


def parameter():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    return p


def test_a_closure_is_not_part_of_the_step(clock):
    watch, optimizer = Watch(), torch.optim.SGD([parameter()], lr=0.1)

    def closure():
        clock[0] += 10
        return torch.tensor(3.0)

    def take_a_second(*_):
        clock[0] += 1

    optimizer.register_step_pre_hook(take_a_second)
    with watching.watching(watch):
        for arguments in ({}, {"closure": closure}):
            assert optimizer.step(**arguments) == (3.0 if arguments else None)
        assert optimizer.step(closure) == 3.0
    optimizer.step()
    (record,) = watch.records
    assert (record.steps, record.time.seconds(), record.last - record.first) == (3, 3.0, 23.0)
    assert report(watch)[-1] == "  3 steps in 3 s, 13.0% of the time from the first to the last (23 s)"
    assert not _global_optimizer_pre_hooks
    assert not _global_optimizer_post_hooks


class Event:
    """As CUDA's, over when the test says so."""

    def __init__(self, at):
        self.at, self.over, self.waited = at, False, False

    def query(self):
        return self.over

    def synchronize(self):
        self.waited = True

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


def test_a_gpu_is_not_waited_for_before_the_end():
    time, pairs = Time(), [(Event(0), Event(2)), (Event(5), Event(9)), (Event(6), Event(7))]
    time.add(*pairs[0])
    pairs[0][1].over = True
    time.add(*pairs[1])
    time.add(*pairs[2], sign=-1)
    assert len(time._pending) == 2
    assert not any(end.waited for _, end in pairs[1:])
    assert time.seconds() == 2 + 4 - 1
    time.add(None, None)  # while a graph was captured
    assert time.seconds() == 5


def test_paths_of_optimizers_that_are_gone():
    watch = Watch()
    with watching.watching(watch), fusedopt.installed():
        optimizer = torch.optim.Adam([parameter(), nn.Parameter(torch.ones(2))])
        for _ in range(5):
            optimizer.step()
        kept = torch.optim.Adam([parameter()])
        kept.step(), kept.step()
        with fusedopt.native():
            kept.step()
        del optimizer
    gone, alive = watch.records
    assert gone.optimizer() is None
    assert (gone.seen, alive.seen) == (4, 3)
    assert {path for path, _ in gone.paths} == {"fused", "none"}
    assert not all_fused(watch)
    lines = report(watch)
    assert lines[0] == "2 x torch.optim.Adam, replaced by fusedopt.Adam"
    assert "  1 parameter by torch's implementation: fusedopt.native() or FUSEDOPT_DISABLE=1" in lines
    watch.records.pop()
    assert all_fused(watch)


def test_a_step_that_fails_is_not_counted(clock):
    watch, bad, good = Watch(), torch.optim.SGD([parameter()]), fusedopt.SGD([parameter()])

    def fail():
        raise ValueError("in the closure")

    with watching.watching(watch):
        with pytest.raises(ValueError, match="in the closure"):
            bad.step(fail)
        good.step()
    assert [record.steps for record in watch.records] == [0, 1]
    lines = report(watch)
    assert lines[:2] == ["1 x torch.optim.SGD, not replaced: made before, or copied", "  no step"]
    assert lines[2] == "1 x fusedopt.optim.sgd.SGD, fused by itself"


def test_steps_in_a_compiled_region():
    watch, optimizer = Watch(), torch.optim.SGD([parameter()], lr=0.5)
    step = torch.compile(optimizer.step, backend="eager")
    with watching.watching(watch):
        step()
    assert torch.equal(optimizer.param_groups[0]["params"][0], torch.full((3,), 0.5))
