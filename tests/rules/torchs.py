"""Cases of the classes that torch.optim has."""

from __future__ import annotations

from typing import Any

import torch
from case import Case

import fusedopt


def _sgd(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    states = ("momentum_buffer",) if "momentum" in kwargs else ()
    return Case(f"sgd{name}", fusedopt.SGD, torch.optim.SGD, {"lr": 0.02} | kwargs, states, max_grad_norm)


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


def _rprop(name: str, max_grad_norm: float | None = None, **kwargs: Any) -> Case:
    kwargs = {"lr": 2**-7} | kwargs  # of which only the first step sizes are made, in any dtype
    options = {"max_grad_norm": max_grad_norm, "decays": None, "fast_lr": 0.25, "by_sign": True}
    return Case(f"rprop{name}", fusedopt.Rprop, torch.optim.Rprop, kwargs, ("prev", "step_size"), **options)


CASES = [
    _sgd(""),
    _sgd("-maximize", maximize=True),
    _sgd("-clip", max_grad_norm=0.5),
    _sgd("-momentum", momentum=0.9),
    _sgd("-momentum-maximize", momentum=0.9, maximize=True),
    _sgd("-dampening", momentum=0.9, dampening=0.3),
    _sgd("-dampening-above-one", momentum=0.9, dampening=1.5),
    _sgd("-nesterov", momentum=0.9, nesterov=True),
    _sgd("-nesterov-clip", momentum=0.9, nesterov=True, max_grad_norm=0.5),
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
    _rprop(""),
    _rprop("-maximize", maximize=True),
    _rprop("-bounds", etas=(0.25, 2.0), step_sizes=(0.125, 0.5)),
    _rprop("-clip", max_grad_norm=0.5),
]
