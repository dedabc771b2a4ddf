"""The search: trials that train, on held-out training images, kept in a study of optuna's that can be gone on with."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna import Study, Trial
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from fusedopt.data import ImageData
from fusedopt.files import FileError, locked
from fusedopt.tasks import find_task
from fusedopt.training import make_optimizer, seeded, train
from fusedopt.training.batches import batch_sizes
from fusedopt.tuning.space import Space, suggest
from fusedopt.tuning.storage import storage_of, study_file, writing

METHODS = ("grid", "random", "bayes", "genetic", "halving", "hyperband")
_NAME = "fusedopt"  # of the study: Hyperband's brackets depend on it
_TRIALS = 20
_GENERATION = 8
_REDUCTION = 3  # halving and Hyperband go on with the best third


@dataclass(frozen=True)
class Search:
    """What is searched, and how.

    Attributes:
        dataset: a name in `fusedopt.tasks`.
        model: a name in `fusedopt.models`; None is the data set's own.
        method: one of `METHODS`. `bayes` is the tree-structured Parzen estimator, `genetic` NSGA-II; `halving` draws at
            random and `hyperband` with `bayes`, and both stop after any epoch what is behind the others.
        space: see `make_space`.
        epochs: of each trial.
        seed: of the search, and of weights, order and dropout in every trial.
        held_out: the share of the training images that the accuracies are taken on.
    """

    dataset: str
    method: str
    space: Space
    model: str | None = None
    epochs: int = 3
    seed: int = 0
    held_out: float = 0.2

    def settings(self) -> dict[str, Any]:
        """Returns what all trials of a study share."""
        space = {
            name: [*dimension.choices] or [dimension.low, dimension.high] for name, dimension in self.space.items()
        }
        others = {name: value for name, value in vars(self).items() if name != "space"}
        return {**others, **{f"space of {name}": values for name, values in space.items()}}

    def points(self) -> int | None:
        """Returns how many points the grid has; None for other methods, which never come to an end."""
        return math.prod(len(d.choices) for d in self.space.values()) if self.method == "grid" else None

    def check(self, data: ImageData) -> None:
        """Raises ValueError where a batch size of the space is too small for the network: see `batch_sizes`."""
        network, sizes = find_task(self.dataset).network(self.model), self.space["batch-size"]
        for size in sizes.choices or (sizes.low,):
            batch_sizes(network, data, int(size))

    def sampler(self, number: int) -> BaseSampler:
        """Makes the sampler of a trial; each has a seed of its own, so that a search goes on as if uninterrupted."""
        if self.method == "grid":  # its seed shuffles the points, and so has to be the same for all trials
            return GridSampler({name: dimension.choices for name, dimension in self.space.items()}, seed=self.seed)
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        if self.method in ("bayes", "hyperband"):
            return TPESampler(seed=seed)
        if self.method == "genetic":
            return NSGAIISampler(population_size=_GENERATION, seed=seed)
        return RandomSampler(seed=seed)

    def pruner(self) -> BasePruner:
        """Makes what stops trials early."""
        if self.method == "halving":
            return SuccessiveHalvingPruner(min_resource=1, reduction_factor=_REDUCTION)
        if self.method == "hyperband":
            return HyperbandPruner(min_resource=1, max_resource=self.epochs, reduction_factor=_REDUCTION)
        return NopPruner()

    def objective(self, trial: Trial, data: ImageData) -> float:
        """Trains once and returns the accuracy on the test images of `data`, 0 to 1, after the last epoch.

        Raises:
            optuna.TrialPruned: the pruner stops it, or its loss is not finite.
        """
        setting = suggest(trial, self.space)
        trial.set_user_attr("options", setting.options())
        network = seeded(lambda: find_task(self.dataset).network(self.model), self.seed)
        optimizer = make_optimizer(
            setting.optimizer,
            network.parameters(),
            lr=setting.lr,
            momentum=setting.momentum,
            weight_decay=setting.weight_decay,
        )
        accuracy = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # of dropout, as in `fusedopt train`
            for epoch in train(
                network, optimizer, data, epochs=self.epochs, batch_size=setting.batch_size, seed=self.seed
            ):
                accuracy = epoch.accuracy
                trial.report(accuracy, epoch.number)
                if not (math.isfinite(epoch.train_loss) and math.isfinite(epoch.test_loss)):  # its accuracy is chance
                    trial.set_user_attr("diverged", True)
                    raise optuna.TrialPruned
                if epoch.number < self.epochs and trial.should_prune():
                    raise optuna.TrialPruned
        return accuracy


@contextmanager
def open_study(search: Search, path: Path | str | None = None) -> Iterator[Study]:
    """Opens the study in a SQLite file, or makes one; without a path it is kept in memory.

    Trials that were interrupted are put in line again. The file is locked, so that none that another run is working on
    is taken for one.

    Raises:
        fusedopt.files.FileError: the file is in use, holds something else or another search, or cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if path is None:
        yield _opened(search, None)
        return
    path = Path(path)
    real = study_file(path)  # before a lock is left beside what is no study
    in_use = f"{path}: is in use by another search; wait for it, or name another --study"
    lock = real.with_name(f"{real.name}.lock")
    with locked(lock, in_use, "name another file with --study"), writing(path):
        yield _opened(search, path)


def _opened(search: Search, path: Path | None) -> Study:
    storage = InMemoryStorage() if path is None else storage_of(path)
    study = optuna.create_study(storage=storage, study_name=_NAME, direction="maximize", load_if_exists=True)
    kept, settings = study.user_attrs.get("settings", {}), search.settings()
    if not kept:
        study.set_user_attr("settings", settings)
    for name in {**kept, **settings} if kept else ():
        was, now = kept.get(name), settings.get(name)
        if was != now:
            raise FileError(f"{path}: holds a search with {name} {was}, not {now}; repeat that or name another --study")
    again = {trial.user_attrs.get("again") for trial in study.trials}
    for trial in study.trials:
        if trial.state == TrialState.RUNNING:  # its process was killed
            study.tell(trial.number, state=TrialState.FAIL)
        elif trial.state != TrialState.FAIL or "interrupted" not in trial.user_attrs:
            continue
        if trial.number not in again:
            study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs={"again": trial.number},
                    system_attrs=trial.system_attrs,
                )
            )
    return study


def run(
    study: Study,
    search: Search,
    data: ImageData,
    trials: int | None = None,
    *,
    processes: int = 1,
    path: Path | str | None = None,
) -> Iterator[FrozenTrial]:
    """Runs trials until the study has so many finished ones, and yields each as it ends.

    Args:
        study: from `open_study`, which goes on after what it holds.
        search: what and how. The same search with one process gives the same trials.
        data: the accuracies are taken on its test images, so these should be held-out training images.
        trials: number of finished ones in the end, those of earlier runs included; by default 20, or the whole grid,
            which ends with its last point whatever the number.
        processes: how many trials are trained at once.
        path: the file of the study, which several processes need.

    Raises:
        ValueError: there are several processes and no file.
    """
    points = search.points()
    last = min(trials or points, points) if points else trials or _TRIALS
    numbers = range(finished(study), last)
    if processes == 1:
        for number in numbers:
            yield _one(study, search, data, number)
        return
    if path is None:
        raise ValueError("several processes need the file of the study, which they share")
    arguments = (search, data, Path(path), torch.get_num_threads())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=arguments) as pool:
        futures = [pool.submit(_work, number) for number in numbers]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def finished(study: Study) -> int:
    """Returns how many trials have come to their end, those that were stopped early included."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def _one(study: Study, search: Search, data: ImageData, number: int) -> FrozenTrial:
    study.sampler, study.pruner = search.sampler(number), search.pruner()
    ended: list[FrozenTrial] = []

    def objective(trial: Trial) -> float:
        try:
            return search.objective(trial, data)
        except KeyboardInterrupt:
            trial.set_user_attr("interrupted", True)
            raise

    study.optimize(objective, n_trials=1, callbacks=[lambda _, trial: ended.append(trial)])
    return ended[0]


_worker: Callable[[int], FrozenTrial]


def _start_worker(search: Search, data: ImageData, path: Path, threads: int) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches all processes: this one ends at once, and the next run finds the trial that it was working on.
    # In the background of a shell, all of them ignore it.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(threads)
    study = optuna.load_study(study_name=_NAME, storage=storage_of(path))

    def work(number: int) -> FrozenTrial:
        with writing(path):
            return _one(study, search, data, number)

    _worker = work


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, however that ended, and at once if it is already.

    What is waited for is the end of a pipe that only the parent holds: no signal and no other process can take it away.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(number: int) -> FrozenTrial:
    return _worker(number)


def best_trial(study: Study) -> FrozenTrial | None:
    """Returns the trial with the highest accuracy after all epochs; None where no trial has come so far."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    return max(complete, key=lambda trial: trial.values[0], default=None)
