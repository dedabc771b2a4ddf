"""A training loop for small in-memory data sets, optimizers by name, and timing of `optimizer.step()`."""

from fusedopt.training.checkpoint import Checkpoint, Position
from fusedopt.training.loop import Epoch, Trajectory, accuracy, batches, predict, record_steps, seeded, train
from fusedopt.training.losses import LOSSES, make_loss
from fusedopt.training.optimizers import OPTIMIZERS, make_optimizer, optimizer_names
from fusedopt.training.run import RunConfig, RunFolder
from fusedopt.training.sampler import ResumableSampler

__all__ = [
    "LOSSES",
    "OPTIMIZERS",
    "Checkpoint",
    "Epoch",
    "Position",
    "ResumableSampler",
    "RunConfig",
    "RunFolder",
    "Trajectory",
    "accuracy",
    "batches",
    "make_loss",
    "make_optimizer",
    "optimizer_names",
    "predict",
    "record_steps",
    "seeded",
    "train",
]
