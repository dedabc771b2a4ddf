"""`fusedopt.capture` as a `with` block: one at a time of each, and nothing stays behind."""

import pytest
import torch
from torch.optim.optimizer import _global_optimizer_pre_hooks

import fusedopt


def test_a_capture_is_entered_once_at_a_time():
    model = torch.nn.Linear(3, 2)
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
    recording, before = fusedopt.capture(model), len(_global_optimizer_pre_hooks)
    with recording as history:
        with pytest.raises(RuntimeError, match="make another capture"), recording:
            pass
        optimizer.step()
    assert len(_global_optimizer_pre_hooks) == before
    optimizer.step()
    assert history.steps == [0]
    with recording:  # the block has been left
        optimizer.step()
    assert history.steps == [0, 1]
    assert len(_global_optimizer_pre_hooks) == before
