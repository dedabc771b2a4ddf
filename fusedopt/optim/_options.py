"""The options of an optimizer beyond those of torch's class: where they are kept, and how they are loaded."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import torch
from torch import Tensor

from fusedopt.optim._base import Base
from fusedopt.optim._codecs import exact
from fusedopt.optim._formats import DEFAULTS, check_formats, complete, kept_dtypes, restore
from fusedopt.optim._processes import Spread, find_spread, is_flattened
from fusedopt.optim._torch import in_layout_of


class Options(Base):
    """An optimizer whose groups have the keys of torch's class, so that any checkpoint of the one loads into the other.

    A subclass calls `_options` at the end of its constructor.
    """

    # Whether a GradScaler leaves unscaling to step(). As in torch's classes, the instance says so under fused=True.
    _step_supports_amp_scaling: bool = False
    # Options beyond torch's: those of a group, which it has only where they are not the default here, so that groups
    # have torch's keys; and those of the whole optimizer, which are in `defaults` alone.
    _group_options: ClassVar[dict[str, Any]] = DEFAULTS
    _own_options: ClassVar[tuple[str, ...]] = ("max_grad_norm", "norm_group")
    _made_of: frozenset[int] | None = None  # ids of the parameters that it was given
    _loading: dict[Tensor, dict[str, Any]] | None = None  # states as they were saved, while they are loaded

    @property
    def grad_norm(self) -> Tensor | None:
        """Norm of all gradients in the last step, unscaled and before clipping.

        A scalar on the first parameter's device, None before the first step or without `max_grad_norm`.
        """
        if self._grad_norm is None:
            return None
        first: Tensor | None = next((p for group in self.param_groups for p in group["params"]), None)
        wide = first is not None and first.dtype in (torch.float64, torch.complex128)
        dtype = torch.float64 if wide else torch.float32
        device = torch.device("cpu") if first is None else first.device
        if isinstance(self._grad_norm, Tensor):
            return self._grad_norm.to(device, dtype, copy=True)
        return torch.tensor(self._grad_norm, dtype=dtype, device=device)

    def exact_parameters(self) -> list[Tensor]:
        """Copies of all parameters in float32 at least: of their master weights, where they have such.

        Raises:
            RuntimeError: within `averaged_weights()`.
        """
        if self._averaged:
            raise RuntimeError("exact_parameters() was called within averaged_weights()")
        return [exact(p, self.state.get(p, {}), group) for group in self.param_groups for p in group["params"]]

    def _options(
        self,
        max_grad_norm: float | None,
        norm_group: Any,
        *,
        fused: bool | None = None,
        **group_options: Any,
    ) -> None:
        """Takes over the options beyond torch's, once torch's constructor has run."""
        if max_grad_norm is not None and not max_grad_norm >= 0:
            raise ValueError(f"Invalid max_grad_norm: {max_grad_norm}; it must be None or at least 0")
        if fused and self.defaults["differentiable"]:  # torch's messages
            raise RuntimeError("`fused` does not support `differentiable`")
        if fused and self.defaults.get("foreach"):
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        self.defaults.setdefault("fused", fused)
        if unknown := group_options.keys() - self._group_options.keys():
            raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument {min(unknown)!r}")
        self.defaults |= {**self._group_options, **group_options, "max_grad_norm": max_grad_norm}
        for group in self.param_groups:
            self._settle(group)
        self._norm_group = norm_group
        self._set_scaling()
        self._find_spread()

    def _settle(self, group: dict[str, Any]) -> None:
        """Gives a new group the options that it leaves open, and keeps out of it what it need not have."""
        self._check_group(group)
        for name in self._own_options:
            group.pop(name, None)
        for name, default in self._group_options.items():
            if group.setdefault(name, self.defaults.get(name, default)) == default:
                del group[name]
        check_formats(group)
        for p in group["params"]:
            if p in self.state:  # of a class that makes its states at once
                complete(self, group, p, fresh=True)

    def _check_group(self, group: dict[str, Any]) -> None:
        # A wrapper that copies its keyword arguments into its groups may repeat the limit.
        if "max_grad_norm" in group and group["max_grad_norm"] != self.defaults["max_grad_norm"]:
            raise ValueError(
                f"max_grad_norm is {group['max_grad_norm']} in a param group and {self.defaults['max_grad_norm']} in "
                "the optimizer: the norm is over all groups, so there is one limit. Give it to the optimizer."
            )

    def _set_scaling(self) -> None:
        # ShardedGradScaler gathers what each process found only where it unscales by itself.
        params = (p for group in self.param_groups for p in group["params"])
        self._step_supports_amp_scaling = bool(self.defaults.get("fused")) and not any(map(is_flattened, params))

    def _find_spread(self) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        self._made_of = frozenset(map(id, params))
        if self._norm_group is None:
            self._spread = find_spread(params) or self._spread
        elif self._norm_group.size() > 1:
            self._spread = Spread(self._norm_group, pieces=True)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's. `max_grad_norm`, whose norm is taken over all groups, may only be the optimizer's."""
        constructed = "max_grad_norm" in self.defaults
        if constructed and isinstance(param_group, dict):
            self._check_group(param_group)
        super().add_param_group(param_group)
        if constructed:
            try:
                self._settle(self.param_groups[-1])
            except ValueError:
                self.param_groups.pop()
                raise
            self._step_supports_amp_scaling &= not any(map(is_flattened, self.param_groups[-1]["params"]))
            self._find_spread()

    def __getstate__(self) -> dict[str, Any]:
        if self._norm_group is not None:
            raise TypeError(
                f"{type(self).__name__} with a norm_group cannot be copied or pickled, as process groups cannot be; "
                "make another one and load its state_dict"
            )
        if self._averaged:
            raise RuntimeError(
                f"{type(self).__name__} was copied or pickled within averaged_weights(): the parameters are not "
                "their own now, and the copy would go on from the averages"
            )
        return super().__getstate__()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's. What is loaded is stored as the options say (:class:`Formats`), whatever it was saved in.

        States that are one number, beside `step`, stay in float32 or float64 and where `step` is.
        """
        with kept_dtypes(self) as self._loading:
            try:
                super().load_state_dict(state_dict)
            finally:
                self._loading = None

    def _convert_states(self, state: dict[str, Any]) -> None:
        """Converts states that are loaded, where another class or form of this one has saved them."""

    def _to_torch(self, state: dict[str, Any]) -> None:
        """Converts what a state_dict stores to what torch's class does; the dicts of single states are not its own."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch keeps only what a loaded group carries. An option of ours that it does not know stays as it is.
        live = self.__dict__.get("param_groups", [])
        for i, group in enumerate(state["param_groups"] if self._loading is not None else ()):
            options = {name: group.get(name, live[i].get(name, default)) for name, default in DEFAULTS.items()}
            try:
                check_formats({**group, **options})
            except ValueError:  # of parameters in another dtype than those that were saved: the options here fit them
                options = {name: live[i].get(name, default) for name, default in DEFAULTS.items()}
                check_formats({**group, **options})
                group |= options
            for p in group["params"]:
                if isinstance(values := state["state"].get(p), dict):
                    restore(self._loading.get(p, {}), values, p, options)  # type: ignore[union-attr]
        self._convert_states(state)
        for i, group in enumerate(state["param_groups"]):
            for name in self._own_options:
                group.pop(name, None)
            for name, default in self._group_options.items():
                if group.setdefault(name, live[i].get(name, default) if i < len(live) else default) == default:
                    del group[name]
        # Unpickled keys are equal to torch's, not identical; the walk over the states finds identical ones faster.
        # And a state saved from another memory layout (a model made channels-last since) takes the parameter's.
        for param, values in state["state"].items():
            if isinstance(param, Tensor) and isinstance(values, dict):
                state["state"][param] = {
                    sys.intern(name) if type(name) is str else name: in_layout_of(param, value)
                    for name, value in values.items()
                }
        super().__setstate__(state)
        if "defaults" in state:  # a copy, which has nothing else of the original
            self._set_scaling()
            self._find_spread()
