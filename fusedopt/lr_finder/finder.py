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

from fusedopt.lr_finder.batches import BatchFn, check_loader
from fusedopt.lr_finder.curve import COMPLETED, DIVERGED, Curve, group_ramps, scales
from fusedopt.lr_finder.plot import decorate, frame, mark_divergence, mark_suggestions, new_axes
from fusedopt.lr_finder.result import LRFinderResult
from fusedopt.lr_finder.snapshot import RandomState, Snapshot
from fusedopt.lr_finder.step import Closure, Task, first_device
from fusedopt.lr_finder.suggestion import METHODS
from fusedopt.lr_finder.suggestion import suggest_lr as suggest
from fusedopt.lr_finder.sweep import Progress, sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LRFinder:
    """Learning rate range test, as in `torch_lr_finder` 0.2.2: `range_test`, `history`, `plot`, `reset`.

    `find_lr` does the same in one call and puts everything back by itself.

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
        self.device = torch.device(device) if device else self.model_device
        self.memory_cache, self.cache_dir = memory_cache, cache_dir
        self.amp_backend, self.amp_config, self.grad_scaler = amp_backend, amp_config, grad_scaler
        self._task = Task(
            model,
            optimizer,
            criterion,
            self.device,
            batch_fn=batch_fn,
            closure=closure,
            autocast=(amp_config or {}) if amp_backend == "torch" else None,
            grad_scaler=grad_scaler if amp_backend == "torch" else None,
            apex=amp_backend == "apex" and hasattr(optimizer, "_amp_stash"),
            process_group=process_group,
        )
        folder = None if memory_cache else Path(cache_dir or tempfile.gettempdir())
        self._snapshot = Snapshot(self._task.modules, optimizer, grad_scaler, folder)
        self._random_state: RandomState | None = None
        self._changed = False
        self.history: dict[str, list[float]] = {"lr": [], "loss": []}
        self.best_loss: float | None = None
        self.result: LRFinderResult | None = None

    def reset(self) -> None:
        """Puts back model, optimizer and scaler as they were when the finder was made.

        After a range test also the random number generators, as they were before it: training then gives bit for bit
        what it would have given without the test.
        """
        self._snapshot.restore()
        if self._random_state is not None:
            self._random_state.restore()
            self._random_state = None
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
            train_loader: any iterable of batches, or a `TrainDataLoaderIter`.
            val_loader: if given, the mean loss over it is recorded in place of the training loss.
            start_lr: None for the optimizer's learning rates; a list for all groups.
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
        check_loader(train_loader, val_loader)
        bases = [float(group["lr"]) for group in self.optimizer.param_groups]
        ramps = group_ramps(bases, start_lr, end_lr, num_iter, step_mode, keep_ratio)
        group_scales = scales([lrs[0] for lrs in ramps]) if keep_ratio else [1.0] * len(ramps)
        curve = Curve(smooth_f, diverge_th)
        self._task.non_blocking = non_blocking_transfer
        self._random_state = RandomState(self.device, [train_loader, val_loader, *self.model.modules()])
        self.history = {"lr": curve.lrs, "loss": curve.smoothed}
        self._changed = True
        try:
            if self.device != self.model_device:
                self.model.to(self.device)
            sweep(
                self._task,
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
            suggest_lr: marks the suggestions, and returns the steepest.

        Returns:
            The axes; with `suggest_lr`, the axes and the suggested learning rate, None with a warning where the curve
            does not support one.

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
        # One line, the loss, and scattered points for the rest: what reads `ax.lines` finds what 0.2.2 has there.
        ax.plot(lrs[inner], losses[inner], label="smoothed loss")
        if self.result is not None and self.result.smoothed is losses:
            ax.scatter(lrs[inner], self.result.losses[inner], s=9, color="#b5b5b5", zorder=1, label="loss of each step")
            frame(ax, self.result.losses[inner], losses[inner])
            if not skip_end:
                mark_divergence(ax, lrs, losses, self.result.stopped)
        suggestions, refusals = self._suggest(skip_start, skip_end) if suggest_lr else ({}, {})
        mark_suggestions(ax, lrs, losses, suggestions, "steepest")
        decorate(ax, log_lr)
        if show_lr is not None:
            ax.axvline(x=show_lr, color="red", label=f"{show_lr:.2e}")
        ax.legend(frameon=False, fontsize=9)
        if not suggest_lr:
            return ax
        if "steepest" in refusals:
            warnings.warn(f"no learning rate to suggest: {refusals['steepest']}", stacklevel=2)
        else:
            print("LR suggestion: steepest gradient")
            print(f"Suggested LR: {suggestions['steepest']:.2E}")
        return ax, suggestions.get("steepest")

    def _suggest(self, skip_start: int, skip_end: int) -> tuple[dict[str, float], dict[str, str]]:
        """Suggestions from `history`, which the user may have set, and the reasons where there is none."""
        lrs, losses = self.history["lr"], self.history["loss"]
        known = self.result is not None and self.result.smoothed is losses
        noise = self.result.noise if known and self.result is not None else None
        suggestions, refusals = {}, {}
        for method in METHODS:
            try:
                suggestions[method] = suggest(lrs, losses, method, skip_start, skip_end, noise=noise)
            except ValueError as error:
                refusals[method] = str(error)
        return suggestions, refusals

    def _refuse_scheduler(self) -> None:
        if any("initial_lr" in group for group in self.optimizer.param_groups):
            raise RuntimeError(
                "Optimizer already has a scheduler attached to it; make the scheduler after the range test, or use "
                "find_lr, which leaves it alone"
            )
