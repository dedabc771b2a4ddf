"""The small networks which the examples train."""

from fusedopt.models.lenet import GarmentClassifier, HandClassifier, LeNet

__all__ = ["GarmentClassifier", "HandClassifier", "LeNet"]
