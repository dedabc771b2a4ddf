"""A training loop for small in-memory data sets, and optimizers by name."""

from fusedopt.training.batches import batches, seeded
from fusedopt.training.checkpoint import Checkpoint, Position
from fusedopt.training.compiled import CompileError
from fusedopt.training.ema import ExponentialAverage
from fusedopt.training.epoch import Epoch
from fusedopt.training.evaluate import accuracy, evaluate, predict
from fusedopt.training.loop import train
from fusedopt.training.losses import LOSSES, make_loss
from fusedopt.training.optimizers import OPTIMIZERS, make_optimizer, optimizer_names
from fusedopt.training.progress import ProgressBar
from fusedopt.training.run import RunFolder
from fusedopt.training.run_config import RunConfig
from fusedopt.training.sampler import ResumableSampler
from fusedopt.training.settings import Settings
from fusedopt.training.trajectory import Trajectory, record_steps

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
    "Trajectory",
    "accuracy",
    "batches",
    "evaluate",
    "make_loss",
    "make_optimizer",
    "optimizer_names",
    "predict",
    "record_steps",
    "seeded",
    "train",
]
