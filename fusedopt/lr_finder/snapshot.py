"""What a range test trains, kept aside and put back bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fusedopt.lr_finder.kept import Kept


class Snapshot(Kept):
    """Parameters, buffers, gradients, train/eval modes, optimizer state and scaler state at one moment.

    Everything is put back into the objects it was read from: the same parameters, the same gradients (None where there
    was none), the same states, with the same values. `state_dict` would not do: it leaves out gradients, modes and
    buffers that are not persistent, and loading one rounds float32 states of bfloat16 parameters.

    Args:
        modules: the model, and the criterion where it is a module.
        optimizer: its `state`, `param_groups` and other attributes; parameters that no module holds are kept too.
        scaler: a `torch.amp.GradScaler`.
        folder: where to keep the copies of the tensors, in a temporary file; None keeps them in memory, each on its
            own device.

    Raises:
        ValueError: a parameter has no shape yet.
    """

    def __init__(
        self, modules: Iterable[nn.Module], optimizer: Optimizer, scaler: Any = None, folder: Path | None = None
    ) -> None:
        super().__init__()
        for module in modules:
            self._keep(module)
        self._keep(optimizer)
        # On their own, since wrappers have them as properties, and some optimizers have no state.
        self._keep(getattr(optimizer, "state", None))
        self._keep(optimizer.param_groups)
        if scaler is not None:
            self._is_new(scaler)
            self._keep(vars(scaler))
        self._copy(folder)


class RandomState:
    """The states of the global random number generators: of Python, NumPy and torch, the CPU's and every device's.

    Args:
        device: the device that the test will run on, which may not be in use yet.
    """

    def __init__(self, device: torch.device) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002 (the global generator is what there is to keep)
        self._cpu = torch.get_rng_state()
        self._devices: list[tuple[Any, list[Tensor]]] = []
        for kind in ("cuda", "xpu"):
            module = getattr(torch, kind)
            if device.type == kind or (module.is_available() and module.is_initialized()):
                self._devices.append((module, module.get_rng_state_all()))
        self._mps = torch.mps.get_rng_state() if device.type == "mps" else None

    def restore(self) -> None:
        """Puts every generator back; may be called any number of times."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._cpu)
        for module, states in self._devices:
            module.set_rng_state_all(states)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)
