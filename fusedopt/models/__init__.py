"""The small networks which the examples train."""

from fusedopt.models.lenet import GarmentClassifier, HandClassifier, LeNet
from fusedopt.models.mlp import MLP

__all__ = ["MLP", "GarmentClassifier", "HandClassifier", "LeNet"]
