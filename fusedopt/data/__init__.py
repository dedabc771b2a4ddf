"""Small image data sets for the examples: drawn from a seed, read in place, or downloaded once and verified."""

from fusedopt.data.fashion_mnist import load_fashion_mnist
from fusedopt.data.hands import draw_hands, make_hands
from fusedopt.data.images import DataError, ImageData, Normalize

__all__ = ["DataError", "ImageData", "Normalize", "draw_hands", "load_fashion_mnist", "make_hands"]
