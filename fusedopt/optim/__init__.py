"""The optimizers, in a namespace that takes the place of torch.optim.

``import fusedopt.optim as optim`` serves a script that says ``import torch.optim as optim``: every public name of the
installed torch.optim is here, ours where there is a fused one, else torch's own object.
"""

import sys
from typing import TYPE_CHECKING

import torch.optim

if TYPE_CHECKING:
    from torch.optim import (
        LBFGS,
        Adafactor,
        Muon,
        Optimizer,
        SparseAdam,
        lr_scheduler,
        swa_utils,
    )
else:  # whatever the installed version has
    globals().update({name: getattr(torch.optim, name) for name in torch.optim.__all__})

from fusedopt.optim._explanation import Explanation
from fusedopt.optim._formats import Formats
from fusedopt.optim._fused import FusedStep as FusedStep  # not torch's, so not among the names
from fusedopt.optim._fused import native
from fusedopt.optim._in_backward import refuse_in_backward as refuse_in_backward
from fusedopt.optim.adadelta import Adadelta
from fusedopt.optim.adagrad import Adagrad
from fusedopt.optim.adam import Adam, AdamW
from fusedopt.optim.adamax import Adamax
from fusedopt.optim.asgd import ASGD
from fusedopt.optim.delta_bar_delta import DeltaBarDelta
from fusedopt.optim.lamb import LAMB
from fusedopt.optim.lars import LARS
from fusedopt.optim.lion import Lion
from fusedopt.optim.nadam import NAdam
from fusedopt.optim.radam import RAdam
from fusedopt.optim.rmsprop import RMSprop
from fusedopt.optim.rprop import Rprop
from fusedopt.optim.sgd import SGD
from fusedopt.optim.swats import SWATS

__all__ = [
    "ASGD",
    "LAMB",
    "LARS",
    "SGD",
    "SWATS",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "DeltaBarDelta",
    "Explanation",
    "Formats",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "native",
]
__all__ += [name for name in torch.optim.__all__ if name not in __all__]

# For `from fusedopt.optim.lr_scheduler import StepLR`: these are torch's modules, not files of ours.
for _name in ("lr_scheduler", "swa_utils"):
    sys.modules[f"{__name__}.{_name}"] = getattr(torch.optim, _name)
