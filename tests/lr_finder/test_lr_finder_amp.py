"""Mixed precision in a range test."""

from functools import partial

import pytest
import torch
from finder_task import make_task
from torch import nn

from fusedopt.lr_finder import LRFinder, find_lr

pytestmark = pytest.mark.usefixtures("one_thread")


def test_amp_in_training_and_validation():
    model, optimizer, train, val = make_task(torch.float32)
    dtypes = []
    model.register_forward_hook(lambda model, _, out: dtypes.append((model.training, out.dtype)))
    options = {"val_loader": val, "num_iter": 3, "end_lr": 0.1}
    loss = partial(lambda out, y: nn.functional.mse_loss(out.float(), y))
    find_lr(model, optimizer, loss, train, amp_dtype=torch.bfloat16, **options)
    assert set(dtypes) == {(True, torch.bfloat16), (False, torch.bfloat16)}
    dtypes.clear()
    with pytest.raises(ValueError, match="grad_scaler"):
        find_lr(model, optimizer, loss, train, amp_dtype=torch.float16, **options)
    scaler = torch.amp.GradScaler("cpu")
    find_lr(model, optimizer, loss, train, amp_dtype=torch.float16, grad_scaler=scaler, **options)
    assert set(dtypes) == {(True, torch.float16), (False, torch.float16)}


def test_a_scaled_run_trains_as_an_unscaled_one():
    """The scale is a power of two, and large: a step that forgot to unscale would diverge."""
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        model, optimizer, train, _ = make_task(torch.float32)
        results.append(find_lr(model, optimizer, nn.MSELoss(), train, end_lr=0.5, num_iter=20, grad_scaler=scaler))
    assert results[0].losses == pytest.approx(results[1].losses, rel=1e-6)


def test_amp_of_the_finder():
    model, optimizer, train, _ = make_task(torch.float32)
    dtypes = []
    model.register_forward_hook(lambda model, _, out: dtypes.append(out.dtype))
    config = {"device_type": "cpu", "dtype": torch.bfloat16}
    loss = partial(lambda out, y: nn.functional.mse_loss(out.float(), y))
    finder = LRFinder(model, optimizer, loss, amp_backend="torch", amp_config=config)
    finder.range_test(train, end_lr=0.1, num_iter=2)
    assert dtypes == [torch.bfloat16] * 2
    with pytest.raises(ValueError, match="grad_scaler"):
        LRFinder(model, optimizer, loss, amp_backend="torch", amp_config=config | {"dtype": torch.float16})
    with pytest.raises(ValueError, match="Unknown amp backend: cuda"):
        LRFinder(model, optimizer, loss, amp_backend="cuda")
