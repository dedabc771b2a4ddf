"""Every optimizer with every option, as data: what the tests run over.

`CASES` holds each entry of the table below three times: as it stands (without weight decay), as `-decay`, and as
`-fast`, with weight decay and a learning rate so high that a missing term cannot hide under a tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import reference
import reference_lion_lars
import torch
from torch.optim import Optimizer

import fusedopt

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = [F32, F64, BF16, F16]
HALVES = [BF16, F16]


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Case:
    """One optimizer with one set of options."""

    name: str
    cls: type[Optimizer]
    twin: type[Optimizer] | None
    """The class of torch.optim that does the same; None where there is none."""
    kwargs: dict[str, Any]
    """What both `cls` and `reference` are made with."""
    states: tuple[str, ...]
    """Keys of the tensors of a parameter's size that the state of a parameter holds."""
    max_grad_norm: float | None = None
    """Our own option; for a twin, the gradients are to be clipped before its step."""
    idle: tuple[str, ...] = ()
    """Those of `states` that stay as they are for the few steps of a test."""
    scalars: tuple[str, ...] = ()
    """Keys of what the state holds beside `states` and the step count: one number each."""

    @property
    def reference(self) -> type[Optimizer]:
        """`twin`, or the class of reference.py, or of reference_lion_lars.py, that stands for it."""
        return self.twin or (reference.REFERENCES | reference_lion_lars.REFERENCES)[self.cls.__name__]

    def make(self, params: Any, **kwargs: Any) -> Optimizer:
        return self.cls(params, **(self.kwargs | {"max_grad_norm": self.max_grad_norm} | kwargs))

    def __str__(self) -> str:
        return self.name


def _sgd(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    states = ("momentum_buffer",) if "momentum" in kwargs else ()
    twin = None if "momentum_form" in kwargs else torch.optim.SGD
    return Case(f"sgd{name}", fusedopt.SGD, twin, {"lr": 0.02} | kwargs, states, max_grad_norm)


def _classic(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    kwargs = {"momentum": 0.9, "momentum_form": "classic"} | kwargs
    return _sgd(f"-classic{name}", max_grad_norm, **kwargs)


def _rmsprop(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    states = ["square_avg"]
    states += ["momentum_buffer"] if "momentum" in kwargs else []
    states += ["grad_avg"] if "centered" in kwargs else []
    kwargs = {"lr": 0.01, "alpha": 0.9} | kwargs
    return Case(f"rmsprop{name}", fusedopt.RMSprop, torch.optim.RMSprop, kwargs, tuple(states), max_grad_norm)


def _adagrad(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    kwargs = {"lr": 0.02} | kwargs
    return Case(f"adagrad{name}", fusedopt.Adagrad, torch.optim.Adagrad, kwargs, ("sum",), max_grad_norm)


def _adam(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    states = ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if "amsgrad" in kwargs else ())
    kwargs = {"lr": 0.01, "weight_decay": 0} | kwargs
    ours, twin = (fusedopt.AdamW, torch.optim.AdamW) if name.startswith("w") else (fusedopt.Adam, torch.optim.Adam)
    return Case(f"adam{name}", ours, twin, kwargs, states, max_grad_norm)


def _lamb(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    kwargs = {"lr": 0.01, "weight_decay": 0} | kwargs
    return Case(f"lamb{name}", fusedopt.LAMB, None, kwargs, ("exp_avg", "exp_avg_sq"), max_grad_norm)


def _delta_bar_delta(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    states = ("gain", "grad_sign") + (("momentum_buffer",) if "momentum" in kwargs else ())
    kwargs = {"lr": 0.02, "beta": 0.3} | kwargs
    return Case(f"delta-bar-delta{name}", fusedopt.DeltaBarDelta, None, kwargs, states, max_grad_norm)


def _swats(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    states = ("exp_avg", "exp_avg_sq", "momentum_buffer")
    idle = () if "switch" in name else ("momentum_buffer",)
    return Case(f"swats{name}", fusedopt.SWATS, None, {"lr": 0.01} | kwargs, states, max_grad_norm, idle)


def _adamax(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    kwargs = {"lr": 0.01} | kwargs
    states = ("exp_avg", "exp_inf")
    return Case(f"adamax{name}", fusedopt.Adamax, torch.optim.Adamax, kwargs, states, max_grad_norm)


def _adadelta(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    kwargs = {"lr": 0.5, "eps": 0.1} | kwargs
    states = ("square_avg", "acc_delta")
    return Case(f"adadelta{name}", fusedopt.Adadelta, torch.optim.Adadelta, kwargs, states, max_grad_norm)


def _radam(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    kwargs = {"lr": 0.01, "weight_decay": 0} | kwargs
    states = ("exp_avg", "exp_avg_sq")
    return Case(f"radam{name}", fusedopt.RAdam, torch.optim.RAdam, kwargs, states, max_grad_norm)


def _nadam(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    kwargs = {"lr": 0.01, "weight_decay": 0} | kwargs
    options = {"states": ("exp_avg", "exp_avg_sq"), "scalars": ("mu_product",), "max_grad_norm": max_grad_norm}
    return Case(f"nadam{name}", fusedopt.NAdam, torch.optim.NAdam, kwargs, **options)


def _asgd(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    kwargs = {"lr": 0.02, "lambd": 0.1} | kwargs
    options = {"states": ("ax",), "scalars": ("eta", "mu"), "max_grad_norm": max_grad_norm}
    return Case(f"asgd{name}", fusedopt.ASGD, torch.optim.ASGD, kwargs, **options)


def _lion(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    # Where a sign decides, what it is of must be exact: 0.7 * 3 - 0.3 * 7 is 0 or not.
    kwargs = {"lr": 0.01, "betas": (0.75, 0.9)} | kwargs
    return Case(f"lion{name}", fusedopt.Lion, None, kwargs, ("exp_avg",), max_grad_norm)


def _rprop(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    kwargs = {"lr": 2**-7} | kwargs  # of which the step sizes are made, in any dtype
    return Case(f"rprop{name}", fusedopt.Rprop, torch.optim.Rprop, kwargs, ("prev", "step_size"), max_grad_norm)


def _lars(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    states = ("momentum_buffer",) if kwargs.get("momentum", 0.9) else ()
    kwargs = {"lr": 0.1, "trust_coefficient": 2.0} | kwargs
    return Case(f"lars{name}", fusedopt.LARS, None, kwargs, states, max_grad_norm)


_TABLE = [
    _sgd(""),
    _sgd("-maximize", maximize=True),
    _sgd("-clip", max_grad_norm=0.5),
    _sgd("-momentum", momentum=0.9),
    _sgd("-momentum-maximize", momentum=0.9, maximize=True),
    _sgd("-dampening", momentum=0.9, dampening=0.3),
    _sgd("-dampening-above-one", momentum=0.9, dampening=1.5),
    _sgd("-nesterov", momentum=0.9, nesterov=True),
    _sgd("-nesterov-clip", momentum=0.9, nesterov=True, max_grad_norm=0.5),
    _classic(""),
    _classic("-maximize", maximize=True),
    _classic("-dampening", dampening=0.3),
    _classic("-nesterov", nesterov=True),
    _classic("-nesterov-clip", nesterov=True, max_grad_norm=0.5),
    _rmsprop(""),
    _rmsprop("-maximize-eps", maximize=True, eps=0.1),
    _rmsprop("-momentum", momentum=0.9),
    _rmsprop("-centered", centered=True),
    _rmsprop("-centered-momentum", centered=True, momentum=0.9),
    _rmsprop("-centered-small-alpha", centered=True, alpha=0.3, eps=0.1),
    _rmsprop("-clip", max_grad_norm=0.5),
    _adagrad(""),
    _adagrad("-maximize", maximize=True),
    _adagrad("-lr-decay", lr_decay=0.3),
    _adagrad("-initial", initial_accumulator_value=0.5, eps=0.1),
    _adagrad("-clip", max_grad_norm=0.5),
    _adam(""),
    _adam("-maximize-eps", maximize=True, eps=0.1),
    _adam("-amsgrad", amsgrad=True, betas=(0.8, 0.5)),
    _adam("-small-beta1", betas=(0.3, 0.9)),
    _adam("-decoupled", decoupled_weight_decay=True),
    _adam("-clip", max_grad_norm=0.5),
    _adam("w"),
    _adam("w-maximize", maximize=True),
    _adam("w-amsgrad", amsgrad=True, betas=(0.8, 0.5)),
    _adam("w-amsgrad-maximize", amsgrad=True, maximize=True),
    _adam("w-small-beta1", betas=(0.0, 0.9)),
    _adam("w-clip", max_grad_norm=0.5),
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
    _adamax(""),
    _adamax("-maximize-eps", maximize=True, eps=0.1),
    _adamax("-small-betas", betas=(0.3, 0.5)),
    _adamax("-clip", max_grad_norm=0.5),
    _adadelta(""),
    _adadelta("-maximize-rho", maximize=True, rho=0.3),
    _adadelta("-clip", max_grad_norm=0.5),
    _radam(""),
    _radam("-maximize", maximize=True),
    # Rectified from the third step on.
    _radam("-rectified", betas=(0.3, 0.8), eps=0.1),
    _radam("-decoupled", betas=(0.9, 0.8), decoupled_weight_decay=True),
    _radam("-clip", betas=(0.9, 0.8), max_grad_norm=0.5),
    _nadam(""),
    _nadam("-maximize-eps", maximize=True, eps=0.1),
    _nadam("-small-betas", betas=(0.3, 0.5), momentum_decay=0.5),
    _nadam("-decoupled", decoupled_weight_decay=True),
    _nadam("-clip", max_grad_norm=0.5),
    _asgd(""),
    _asgd("-maximize", maximize=True),
    # Averages from the second step on.
    _asgd("-averages", t0=-1.0, alpha=0.6),
    _asgd("-clip", t0=-1.0, max_grad_norm=0.5),
    _lion(""),
    _lion("-maximize", maximize=True),
    _lion("-betas", betas=(0.25, 0.5)),
    _lion("-clip", max_grad_norm=0.5),
    _rprop(""),
    _rprop("-maximize", maximize=True),
    _rprop("-bounds", etas=(0.25, 2.0), step_sizes=(0.125, 0.5)),
    _rprop("-clip", max_grad_norm=0.5),
    _lars(""),
    _lars("-no-momentum", momentum=0.0),
    _lars("-nesterov", nesterov=True),
    _lars("-exclude", exclude_1d=True),
    _lars("-maximize", maximize=True, eps=0.1),
    _lars("-clip", max_grad_norm=0.5),
    _lars("-no-momentum-clip", momentum=0.0, max_grad_norm=0.5),
]


def _with_twins(case: Case) -> list[Case]:
    # Where the sign of gradient and decay together decides, their product must be exact: 0.75 - 0.3 * 2.5 is 0 or not.
    small, large = (0.125, 0.25) if case.cls is fusedopt.DeltaBarDelta else (0.1, 0.3)
    if case.cls is fusedopt.Rprop:  # has no weight decay; of its rate only the first step sizes are made
        return [case, replace(case, name=f"{case.name}-fast", kwargs=case.kwargs | {"lr": 0.25})]
    decay = replace(case, name=f"{case.name}-decay", kwargs=case.kwargs | {"weight_decay": small})
    fast = replace(case, name=f"{case.name}-fast", kwargs=case.kwargs | {"weight_decay": large, "lr": 0.3})
    return [case, decay, fast]


CASES: list[Case] = [twin for case in _TABLE for twin in _with_twins(case)]
FAST_CASES: list[Case] = [case for case in CASES if case.name.endswith("-fast")]
BY_NAME: dict[str, Case] = {case.name: case for case in CASES}


def _one_of_each() -> list[Case]:
    """Of each class, form and phase the case with most states and options, with weight decay where the class has it and
    without clipping.
    """
    chosen: dict[Any, Case] = {}
    for case in CASES:
        kind = case.cls, case.twin is None, bool(case.idle)
        decays = case.name.endswith("-decay") or (case.cls is fusedopt.Rprop and not case.name.endswith("-fast"))
        if decays and case.max_grad_norm is None and "maximize" not in case.kwargs:
            best = chosen.setdefault(kind, case)
            if (len(case.states), len(case.kwargs)) >= (len(best.states), len(best.kwargs)):
                chosen[kind] = case
    return list(chosen.values())


ONE_OF_EACH: list[Case] = _one_of_each()

# One of each loop that is compiled: of a class, a form, a phase and a set of states, with clipping and without.
LOOPS: list[Case] = list(
    {(c.cls, c.twin is None, c.states, c.idle, c.max_grad_norm is None): c for c in FAST_CASES}.values()
)
