"""Cases of what torch.optim has not."""

from __future__ import annotations

from typing import Any

from case import Case
from reference import ReferenceClassicSGD, ReferenceDeltaBarDelta, ReferenceLAMB, ReferenceSWATS
from reference_lion_lars import ReferenceLARS, ReferenceLion

import fusedopt


def _classic(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    kwargs = {"lr": 0.02, "momentum": 0.9, "momentum_form": "classic"} | kwargs
    states = ("momentum_buffer",)
    return Case(f"sgd-classic{name}", fusedopt.SGD, ReferenceClassicSGD, kwargs, states, max_grad_norm)


def _lamb(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    kwargs = {"lr": 0.01, "weight_decay": 0} | kwargs
    return Case(f"lamb{name}", fusedopt.LAMB, ReferenceLAMB, kwargs, ("exp_avg", "exp_avg_sq"), max_grad_norm)


def _delta_bar_delta(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    states = ("gain", "grad_sign") + (("momentum_buffer",) if "momentum" in kwargs else ())
    kwargs = {"lr": 0.02, "beta": 0.3} | kwargs
    # Where the sign of gradient and decay together decides, their product must be exact: 0.75 - 0.3 * 2.5 is 0 or not.
    options = {"max_grad_norm": max_grad_norm, "decays": (0.125, 0.25)}
    return Case(f"delta-bar-delta{name}", fusedopt.DeltaBarDelta, ReferenceDeltaBarDelta, kwargs, states, **options)


def _swats(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    states = ("exp_avg", "exp_avg_sq", "momentum_buffer")
    idle = () if "switch" in name else ("momentum_buffer",)
    return Case(f"swats{name}", fusedopt.SWATS, ReferenceSWATS, {"lr": 0.01} | kwargs, states, max_grad_norm, idle)


def _lion(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    # Where a sign decides, what it is of must be exact: 0.7 * 3 - 0.3 * 7 is 0 or not.
    kwargs = {"lr": 0.01, "betas": (0.75, 0.9)} | kwargs
    return Case(f"lion{name}", fusedopt.Lion, ReferenceLion, kwargs, ("exp_avg",), max_grad_norm, by_sign=True)


def _lars(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    states = ("momentum_buffer",) if kwargs.get("momentum", 0.9) else ()
    kwargs = {"lr": 0.1, "trust_coefficient": 2.0} | kwargs
    return Case(f"lars{name}", fusedopt.LARS, ReferenceLARS, kwargs, states, max_grad_norm)


CASES = [
    _classic(""),
    _classic("-maximize", maximize=True),
    _classic("-dampening", dampening=0.3),
    _classic("-nesterov", nesterov=True),
    _classic("-nesterov-clip", nesterov=True, max_grad_norm=0.5),
    _lamb("", max_grad_norm=1.0),
    _lamb("-no-clip"),
    _lamb("-always-adapt", always_adapt=True),
    _lamb("-maximize", max_grad_norm=1.0, maximize=True, eps=0.1),
    _lamb("-no-bias-correction", bias_correction=False, always_adapt=True),
    _lamb("-no-grad-averaging", grad_averaging=False, always_adapt=True),
    _lamb("-l2", decoupled_weight_decay=False, max_grad_norm=1.0),
    _lamb("-trust-clip", trust_clip=0.5, always_adapt=True),
    _lamb("-phi", phi=(2.0, 50.0), always_adapt=True, max_grad_norm=1.0),
    _delta_bar_delta(""),
    _delta_bar_delta("-maximize", maximize=True),
    _delta_bar_delta("-bounds", beta=0.5, min_gain=0.8, max_gain=1.2),
    _delta_bar_delta("-clip", max_grad_norm=0.5),
    _delta_bar_delta("-momentum", momentum=0.9),
    _delta_bar_delta("-momentum-clip", momentum=0.9, max_grad_norm=0.5),
    _swats(""),
    _swats("-maximize", maximize=True, betas=(0.3, 0.9)),
    _swats("-clip", max_grad_norm=0.5),
    # An epsilon far above any step size: they switch at the second step.
    _swats("-switch", betas=(0.5, 0.6), eps=4.0),
    _swats("-switch-clip", betas=(0.8, 0.5), eps=4.0, max_grad_norm=0.5),
    _swats("-switch-maximize", betas=(0.0, 0.6), eps=4.0, maximize=True),
    _lion(""),
    _lion("-maximize", maximize=True),
    _lion("-betas", betas=(0.25, 0.5)),
    _lion("-clip", max_grad_norm=0.5),
    _lars(""),
    _lars("-no-momentum", momentum=0.0),
    _lars("-nesterov", nesterov=True),
    _lars("-exclude", exclude_1d=True),
    _lars("-maximize", maximize=True, eps=0.1),
    _lars("-clip", max_grad_norm=0.5),
    _lars("-no-momentum-clip", momentum=0.0, max_grad_norm=0.5),
]
