"""The learning-rate schedules that torch lacks, batch-size schedules, schedules on the device, simulation and pictures.

torch's own schedules, `torch.optim.lr_scheduler`, work with the optimizers as they are and are not repeated here.
"""

from fusedopt.schedulers.batch_size import BatchSizeScheduler
from fusedopt.schedulers.closed_form import ClosedFormLR
from fusedopt.schedulers.decay import ExponentialDecayLR, FlatCosineLR, HalvingLR, InverseDecayLR, InverseSqrtLR
from fusedopt.schedulers.device import DeviceSchedule, on_device
from fusedopt.schedulers.plot import plot_schedules
from fusedopt.schedulers.ramp import RampLR, make_lr_fn
from fusedopt.schedulers.simulate import Simulation, simulate
from fusedopt.schedulers.warmup import WarmupLR, WarmupStableDecayLR

__all__ = [
    "BatchSizeScheduler",
    "ClosedFormLR",
    "DeviceSchedule",
    "ExponentialDecayLR",
    "FlatCosineLR",
    "HalvingLR",
    "InverseDecayLR",
    "InverseSqrtLR",
    "RampLR",
    "Simulation",
    "WarmupLR",
    "WarmupStableDecayLR",
    "make_lr_fn",
    "on_device",
    "plot_schedules",
    "simulate",
]
