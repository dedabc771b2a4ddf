"""A training loop for small in-memory data sets, and optimizers by name."""

import sys

from fusedopt.runs import checkpoint
from fusedopt.runs.checkpoint import Checkpoint, Position
from fusedopt.runs.config import RunConfig
from fusedopt.runs.epoch import Epoch
from fusedopt.runs.folder import RunFolder
from fusedopt.runs.sampler import ResumableSampler
from fusedopt.training.batches import batches, seeded
from fusedopt.training.compute import CompileError
from fusedopt.training.ema import ExponentialAverage
from fusedopt.training.evaluate import accuracy, evaluate, predict
from fusedopt.training.loop import train
from fusedopt.training.losses import LOSSES, make_loss
from fusedopt.training.optimizers import OPTIMIZERS, make_optimizer, optimizer_names
from fusedopt.training.progress import ProgressBar
from fusedopt.training.settings import Settings

# `fusedopt.training.checkpoint.read` has been public from the first.
sys.modules[f"{__name__}.checkpoint"] = checkpoint

__all__ = [
    "LOSSES",
    "OPTIMIZERS",
    "Checkpoint",
    "CompileError",
    "Epoch",
    "ExponentialAverage",
    "Position",
    "ProgressBar",
    "ResumableSampler",
    "RunConfig",
    "RunFolder",
    "Settings",
    "accuracy",
    "batches",
    "evaluate",
    "make_loss",
    "make_optimizer",
    "optimizer_names",
    "predict",
    "seeded",
    "train",
]
