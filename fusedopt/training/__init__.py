"""A training loop for small in-memory data sets, optimizers by name, and timing of `optimizer.step()`."""

from fusedopt.training.loop import Epoch, Trajectory, accuracy, batches, predict, record_steps, seeded, train
from fusedopt.training.optimizers import OPTIMIZERS, make_optimizer, optimizer_names

__all__ = [
    "OPTIMIZERS",
    "Epoch",
    "Trajectory",
    "accuracy",
    "batches",
    "make_optimizer",
    "optimizer_names",
    "predict",
    "record_steps",
    "seeded",
    "train",
]
