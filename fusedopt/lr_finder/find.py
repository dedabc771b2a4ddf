"""The range test in one call that leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from fusedopt.lr_finder.batches import BatchFn, check_loader
from fusedopt.lr_finder.curve import Curve, group_ramps, ramp, scales
from fusedopt.lr_finder.kept import put_back
from fusedopt.lr_finder.result import LRFinderResult
from fusedopt.lr_finder.snapshot import Snapshot
from fusedopt.lr_finder.step import Closure, Task, first_device
from fusedopt.lr_finder.suggestion import FlatCurveError, check_method
from fusedopt.lr_finder.surroundings import Surroundings
from fusedopt.lr_finder.sweep import Progress, sweep

_REACH = 1e4  # no learning rate matters that is lower by more than the one at which a test ended
_LEAST_GAIN = 10  # of the start, that makes a second test worth it


def find_lr(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Callable[[Any, Any], Tensor] | None,
    loader: Any,
    *,
    val_loader: Any = None,
    start_lr: float | Sequence[float] | None = 1e-7,
    end_lr: float = 10,
    num_iter: int = 100,
    step_mode: str = "exp",
    smooth_f: float = 0.05,
    diverge_th: float | None = 5,
    accumulation_steps: int = 1,
    steps_per_lr: int = 1,
    method: str = "minimum",
    skip_start: int = 10,
    skip_end: int = 5,
    device: str | torch.device | None = None,
    amp_dtype: torch.dtype | None = None,
    grad_scaler: Any = None,
    batch_fn: BatchFn | None = None,
    closure: Closure | None = None,
    process_group: dist.ProcessGroup | None = None,
    non_blocking_transfer: bool = True,
    progress: Progress | None = None,
) -> LRFinderResult:
    """Finds a learning rate by a range test: trains while the learning rate grows, and watches the loss.

    Everything is put back as it was, also after an exception or Ctrl-C: parameters, buffers, gradients, the modes of
    all modules, the states of optimizer and scaler, all random number generators, the position of a `DataLoader` and of
    its samplers, and what the optimizer's step hooks hold: noise, averaged models, logs. Training afterwards gives bit
    for bit what it would have given without the call. (An iterator that cannot start over stays where it is left.)

    Where the loss falls by too little because most of an exponential range is far too low for it, the test is repeated
    from a ten-thousandth of the learning rate at which it ended, and the second result returned if it has a suggestion.

    Under `DistributedDataParallel` call it on every rank: losses are averaged over the ranks, which get one result.

    Args:
        model: in training mode it is trained with the modes its modules have (layers frozen by `eval()` stay so); in
            evaluation mode it is switched to training as a whole.
        optimizer: may have a scheduler, which is left alone. Groups keep the ratios of their learning rates.
        criterion: loss of (outputs, labels), a scalar tensor.
        loader: any iterable of batches, (inputs, labels, ...) unless `batch_fn` or `closure` says otherwise; started
            over as often as need be.
        val_loader: if given, the mean loss over it is recorded after each step in place of the training loss.
        start_lr: learning rate of the first step and group; a list for all groups; None for the optimizer's own. Above
            0, or with "linear" at least 0. Numbers here and below may be tensors or arrays of one element.
        end_lr: learning rate of the last step, for the first group.
        num_iter: number of learning rates.
        step_mode: "exp" or "linear".
        smooth_f: share of the newest loss in the moving average; 0 does not smooth.
        diverge_th: stops when the smoothed loss exceeds this many times its lowest value (for losses that are
            negative: exceeds it by as many times the larger of its magnitude and the fall so far, less one), or is not
            finite. None runs to the end whatever the loss.
        accumulation_steps: batches whose gradients are averaged for one optimizer step.
        steps_per_lr: optimizer steps at each learning rate; the mean of their losses is recorded.
        method, skip_start, skip_end: of the suggestion, see `suggest_lr`. "minimum" is the most reliable one with the
            smoothing here (docs/lr_finder.md has the comparison); "steepest" is torch_lr_finder's.
        device: where to run; None for where the model is.
        amp_dtype: runs forward passes under `torch.autocast`, in training and validation: `torch.bfloat16`, or
            `torch.float16` with a `grad_scaler`.
        grad_scaler: a `torch.amp.GradScaler`.
        batch_fn: turns what the loaders yield into (inputs, labels), for batches that are dicts and the like.
        closure: `closure(model, batch)` returns the loss, for models with several inputs, outputs or losses; pass
            `criterion=None` with it.
        process_group: averages losses over its ranks; needed only for parallel models other than
            `DistributedDataParallel`.
        non_blocking_transfer: moves batches without waiting for it, from pinned memory.
        progress: wraps the iterations, e.g. `lambda steps, total: tqdm(steps, total=total)`.

    Returns:
        The curve, the suggestions, and a plot.

    Raises:
        ValueError: an argument is wrong; nothing has been run then.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", https://arxiv.org/abs/1506.01186.
    """
    where = torch.device(device) if device else first_device(model, optimizer)
    autocast = None if amp_dtype is None else {"dtype": amp_dtype}
    task = Task(
        model,
        optimizer,
        criterion,
        where,
        batch_fn=batch_fn,
        closure=closure,
        autocast=autocast,
        grad_scaler=grad_scaler,
        process_group=process_group,
        non_blocking=non_blocking_transfer,
    )
    check_method(method, skip_start, skip_end)
    check_loader(loader, val_loader)
    bases = [group["lr"] for group in optimizer.param_groups]
    ramps = group_ramps(bases, start_lr, end_lr, num_iter, step_mode, keep_ratio=True)
    snapshot = Snapshot(task.modules, optimizer, grad_scaler)
    surroundings = Surroundings(snapshot, where, [loader, val_loader, *task.generator_owners])

    def test(ramps: list[list[float]]) -> LRFinderResult:
        curve = Curve(smooth_f, diverge_th)
        try:
            if device:
                model.to(where)
            sweep(
                task,
                ramps,
                loader,
                val_loader,
                curve,
                accumulation_steps=accumulation_steps,
                steps_per_lr=steps_per_lr,
                progress=progress,
            )
        finally:
            put_back(snapshot, surroundings)
        return LRFinderResult.of(curve, scales([lrs[-1] for lrs in ramps]), method, skip_start, skip_end)

    result = test(ramps)
    starts_over = not isinstance(loader, Iterator) and not isinstance(val_loader, Iterator)
    if step_mode.lower() == "exp" and starts_over and (higher := _higher(ramps, result)):
        again = test(higher)
        if method in again.suggestions:
            return again
    return result


def _higher(ramps: list[list[float]], result: LRFinderResult) -> list[list[float]] | None:
    """Learning rates with more of them where they matter, if the loss falls by too little at these."""
    factor = result.lrs[-1] / ramps[0][0] / _REACH
    try:
        result.suggest(result.method)
    except FlatCurveError:
        return [ramp(factor * lrs[0], lrs[-1], len(lrs)) for lrs in ramps] if factor >= _LEAST_GAIN else None
    except ValueError:
        pass
    return None
