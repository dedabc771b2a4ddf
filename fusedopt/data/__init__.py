"""Small image data sets for the examples: drawn from a seed, read in place, or downloaded once and verified."""

from fusedopt.data.augmentations import AUGMENTATIONS, Augmentation, Compose, compose, make_augmentation
from fusedopt.data.cifar10 import load_cifar10
from fusedopt.data.fashion_mnist import load_fashion_mnist
from fusedopt.data.folder import ImageFolder, find_images
from fusedopt.data.hands import draw_hands, make_hands
from fusedopt.data.image_files import read_image
from fusedopt.data.images import DataError, ImageData, Normalize, hold_out
from fusedopt.data.loader import BatchLoader, BatchTransform
from fusedopt.data.rps import ImageFiles, load_rps
from fusedopt.data.rps_photos import load_rps_photos
from fusedopt.data.statistics import ChannelStatistics, channel_statistics

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "BatchLoader",
    "BatchTransform",
    "ChannelStatistics",
    "Compose",
    "DataError",
    "ImageData",
    "ImageFiles",
    "ImageFolder",
    "Normalize",
    "channel_statistics",
    "compose",
    "draw_hands",
    "find_images",
    "hold_out",
    "load_cifar10",
    "load_fashion_mnist",
    "load_rps",
    "load_rps_photos",
    "make_augmentation",
    "make_hands",
    "read_image",
]
