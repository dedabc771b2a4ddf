"""The learning rate range test: `find_lr` in one call, `LRFinder` as in torch_lr_finder, `suggest_lr` on a curve."""

from fusedopt.lr_finder.batches import TrainDataLoaderIter, ValDataLoaderIter
from fusedopt.lr_finder.find import find_lr
from fusedopt.lr_finder.finder import LRFinder
from fusedopt.lr_finder.result import LRFinderResult
from fusedopt.lr_finder.suggestion import suggest_lr

__all__ = ["LRFinder", "LRFinderResult", "TrainDataLoaderIter", "ValDataLoaderIter", "find_lr", "suggest_lr"]
