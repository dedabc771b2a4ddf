"""The range test under the names of the package torch_lr_finder, version 0.2.2."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from fusedopt.lr_finder.batches import BatchFn, check_loader, check_loader_types
from fusedopt.lr_finder.curve import COMPLETED, DIVERGED, Curve, group_ramps, scales
from fusedopt.lr_finder.kept import put_back
from fusedopt.lr_finder.plot import decorate, new_axes
from fusedopt.lr_finder.result import LRFinderResult
from fusedopt.lr_finder.snapshot import Snapshot
from fusedopt.lr_finder.step import Closure, Task, first_device
from fusedopt.lr_finder.suggestion import steepest_fall
from fusedopt.lr_finder.suggestion import suggest_lr as suggest
from fusedopt.lr_finder.surroundings import Surroundings
from fusedopt.lr_finder.sweep import Progress, sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LRFinder:
    """Learning rate range test, as in `torch_lr_finder` 0.2.2: `range_test`, `history`, `plot`, `reset`.

    `find_lr` does the same in one call and puts everything back by itself. The arguments are attributes that may be
    assigned later: the next test uses them, and `reset` puts back what they were before it.

    Args:
        model: the model.
        optimizer: without a scheduler. Its learning rates are where the test begins unless `start_lr` is given.
        criterion: loss of (outputs, labels); None with a closure.
        device: where to run; None for where the model is.
        memory_cache: keeps the initial state in memory, else in a temporary file.
        cache_dir: the folder of that file; None for the system's.
        amp_backend: "torch", "apex", or None for no mixed precision.
        amp_config: keyword arguments of `torch.autocast`.
        grad_scaler: a `torch.amp.GradScaler`; needed for float16.
        batch_fn, closure, process_group: as in `find_lr`.

    Attributes:
        history: "lr" and "loss", the smoothed one.
        best_loss: the lowest smoothed loss.
        result: the last test as an `LRFinderResult`, None before.

    Raises:
        RuntimeError: the optimizer has a scheduler.
        ValueError: an argument is wrong.

    Source: https://github.com/davidtvs/pytorch-lr-finder, after Smith, https://arxiv.org/abs/1506.01186.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[[Any, Any], Tensor] | None,
        device: str | torch.device | None = None,
        memory_cache: bool = True,
        cache_dir: str | None = None,
        amp_backend: str | None = None,
        amp_config: Mapping[str, Any] | None = None,
        grad_scaler: Any = None,
        *,
        batch_fn: BatchFn | None = None,
        closure: Closure | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.model, self.optimizer, self.criterion = model, optimizer, criterion
        self._refuse_scheduler()
        known = ("torch", "apex") if importlib.util.find_spec("apex") else ("torch",)
        if amp_backend and amp_backend not in known:
            raise ValueError(f"Unknown amp backend: {amp_backend}; here there is {' and '.join(known)}")
        if cache_dir is not None and not Path(cache_dir).is_dir():
            raise ValueError("Given `cache_dir` is not a valid directory.")
        self.model_device = first_device(model, optimizer)
        self.device = device or self.model_device
        self.memory_cache, self.cache_dir = memory_cache, cache_dir
        self.amp_backend, self.amp_config, self.grad_scaler = amp_backend, amp_config, grad_scaler
        self.batch_fn, self.closure, self.process_group = batch_fn, closure, process_group
        self._snapshot = self._take_snapshot(self._task())
        self._surroundings: Surroundings | None = None
        self._changed = False
        self.history: dict[str, list[float]] = {"lr": [], "loss": []}
        self.best_loss: float | None = None
        self.result: LRFinderResult | None = None

    def _task(self) -> Task:
        """What is to be trained, of the attributes as they are now: they may have been assigned."""
        return Task(
            self.model,
            self.optimizer,
            self.criterion,
            torch.device(self.device),
            batch_fn=self.batch_fn,
            closure=self.closure,
            autocast=(self.amp_config or {}) if self.amp_backend == "torch" else None,
            grad_scaler=self.grad_scaler if self.amp_backend == "torch" else None,
            apex=self.amp_backend == "apex" and hasattr(self.optimizer, "_amp_stash"),
            process_group=self.process_group,
        )

    def _take_snapshot(self, task: Task) -> Snapshot:
        folder = None if self.memory_cache else Path(self.cache_dir or tempfile.gettempdir())
        return Snapshot(task.modules, self.optimizer, self.grad_scaler, folder)

    def reset(self) -> None:
        """Puts back model, optimizer and scaler as they were when the finder was made.

        After a range test also the random number generators, as they were before it: training then gives bit for bit
        what it would have given without the test.
        """
        put_back(self._snapshot, *filter(None, [self._surroundings]))
        self._surroundings = None
        self._changed = False

    def range_test(
        self,
        train_loader: Any,
        val_loader: Any = None,
        start_lr: float | Sequence[float] | None = None,
        end_lr: float = 10,
        num_iter: int = 100,
        step_mode: str = "exp",
        smooth_f: float = 0.05,
        diverge_th: float | None = 5,
        accumulation_steps: int = 1,
        non_blocking_transfer: bool = True,
        *,
        steps_per_lr: int = 1,
        keep_ratio: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Trains while the learning rate grows, and fills `history`. Model and optimizer stay changed until `reset`.

        An exception, Ctrl-C included, resets them; `history` then holds the test up to there.

        Args:
            train_loader: a `DataLoader` or a `TrainDataLoaderIter`; `find_lr` takes any iterable of batches.
            val_loader: a `DataLoader` or a `ValDataLoaderIter`: the mean loss over it is recorded in place of the
                training loss.
            start_lr: None, or 0 with a warning, for the optimizer's learning rates; a list for all groups.
            end_lr, num_iter, step_mode, smooth_f, diverge_th, accumulation_steps: as in `find_lr`.
            non_blocking_transfer: moves batches without waiting for it, from pinned memory.
            steps_per_lr: optimizer steps at each learning rate; the mean of their losses is recorded.
            keep_ratio: parameter groups keep the ratios of their learning rates; by default, as in 0.2.2, each goes
                from its own learning rate to `end_lr`.
            progress: wraps the iterations, as in `find_lr`.

        Raises:
            RuntimeError: the optimizer has a scheduler, or the last test was not followed by `reset`.
            ValueError: an argument is wrong; nothing has been run then.
        """
        self._refuse_scheduler()
        if self._changed:
            raise RuntimeError("model and optimizer are still as the last range test left them; call reset() first")
        check_loader_types(train_loader, val_loader)
        check_loader(train_loader, val_loader)
        if _is_zero(start_lr):
            warnings.warn("start_lr=0 is the optimizer's own learning rate, as None is", stacklevel=2)
            start_lr = None
        bases = [group["lr"] for group in self.optimizer.param_groups]
        ramps = group_ramps(bases, start_lr, end_lr, num_iter, step_mode, keep_ratio)
        group_scales = scales([lrs[-1] for lrs in ramps]) if keep_ratio else [1.0] * len(ramps)
        curve = Curve(smooth_f, diverge_th)
        task = self._task()
        task.non_blocking = non_blocking_transfer
        if not all(map(self._snapshot.holds, (*task.modules, self.optimizer))):
            self._snapshot = self._take_snapshot(task)
            self.model_device = first_device(self.model, self.optimizer)
        owners = [train_loader, val_loader, *task.generator_owners]
        self._surroundings = Surroundings(self._snapshot, task.device, owners)
        self.history = {"lr": curve.lrs, "loss": curve.smoothed}
        self._changed = True
        try:
            if task.device != self.model_device:
                self.model.to(task.device)
            sweep(
                task,
                ramps,
                train_loader,
                val_loader,
                curve,
                accumulation_steps=accumulation_steps,
                steps_per_lr=steps_per_lr,
                progress=progress,
            )
        except BaseException:
            self.reset()
            raise
        finally:
            self.best_loss = curve.best
            self.result = LRFinderResult.of(curve, group_scales, "steepest", 10, 5)
        if curve.stopped != COMPLETED:
            print(f"Stopping early, the loss {'has diverged' if curve.stopped == DIVERGED else 'is not finite'}")
        print("Learning rate search finished. See the graph with LRFinder.plot()")

    def plot(
        self,
        skip_start: int = 10,
        skip_end: int = 5,
        log_lr: bool = True,
        show_lr: float | None = None,
        ax: Axes | None = None,
        suggest_lr: bool = True,
    ) -> Axes | tuple[Axes, float | None]:
        """Draws the curve; nothing is shown, call `plt.show()` for that.

        Args:
            skip_start, skip_end: points to leave out at either end.
            log_lr: a logarithmic scale of learning rates.
            show_lr: a learning rate to mark with a line.
            ax: matplotlib axes to draw into; None makes a figure.
            suggest_lr: marks the point of the steepest gradient, and returns its learning rate.

        Returns:
            The axes; with `suggest_lr`, the axes and the suggested learning rate, as in 0.2.2, with a warning where the
            curve does not support one; None where no loss is finite. `result.plot` draws more, and suggests better.

        Raises:
            RuntimeError: the test was too short for a suggestion.
            ValueError: an argument is wrong.
        """
        if skip_start < 0:
            raise ValueError("skip_start cannot be negative")
        if skip_end < 0:
            raise ValueError("skip_end cannot be negative")
        if show_lr is not None and not isinstance(show_lr, float):
            raise ValueError("show_lr must be float")
        lrs, losses = self.history["lr"], self.history["loss"]
        if suggest_lr and len(lrs) < skip_start + skip_end + 2:
            raise RuntimeError(
                f"Need at least {skip_start + skip_end + 2} iterations to suggest a learning rate. Got {len(lrs)}"
            )
        ax = ax or new_axes()
        inner = slice(skip_start, max(len(lrs) - skip_end, skip_start))
        lrs, losses = lrs[inner], losses[inner]
        ax.plot(lrs, losses)
        point = steepest_fall(losses) if suggest_lr else None
        if point is not None:
            print("LR suggestion: steepest gradient")
            print(f"Suggested LR: {lrs[point]:.2E}")
            ax.scatter(lrs[point], losses[point], s=75, marker="o", color="red", zorder=3, label="steepest gradient")
            ax.legend()
        decorate(ax, log_lr)
        if show_lr is not None:
            ax.axvline(x=show_lr, color="red")
        if not suggest_lr:
            return ax
        if reason := self._refusal(skip_start, skip_end):
            warnings.warn(f"the curve does not support a suggestion: {reason}", stacklevel=2)
        return ax, None if point is None else lrs[point]

    def _refusal(self, skip_start: int, skip_end: int) -> str | None:
        """Why `suggest_lr` would suggest nothing for `history`, which the user may have set."""
        lrs, losses = self.history["lr"], self.history["loss"]
        known = self.result is not None and self.result.smoothed is losses
        noise = self.result.noise if known and self.result is not None else None
        try:
            suggest(lrs, losses, "steepest", skip_start, skip_end, noise=noise)
        except ValueError as error:
            return str(error)
        return None

    def _refuse_scheduler(self) -> None:
        if any("initial_lr" in group for group in self.optimizer.param_groups):
            raise RuntimeError(
                "Optimizer already has a scheduler attached to it; make the scheduler after the range test, or use "
                "find_lr, which leaves it alone"
            )


def _is_zero(start_lr: Any) -> bool:
    several = isinstance(start_lr, Sequence) or getattr(start_lr, "ndim", 0) > 0
    return start_lr is not None and not several and not start_lr
