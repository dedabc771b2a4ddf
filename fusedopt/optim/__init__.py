"""The optimizers."""

from fusedopt.optim._explanation import Explanation
from fusedopt.optim._fused import native
from fusedopt.optim.adagrad import Adagrad
from fusedopt.optim.adam import Adam, AdamW
from fusedopt.optim.delta_bar_delta import DeltaBarDelta
from fusedopt.optim.lamb import LAMB
from fusedopt.optim.rmsprop import RMSprop
from fusedopt.optim.sgd import SGD
from fusedopt.optim.swats import SWATS

__all__ = ["LAMB", "SGD", "SWATS", "Adagrad", "Adam", "AdamW", "DeltaBarDelta", "Explanation", "RMSprop", "native"]
