"""torch's own database of optimizer inputs, run over our classes.

On the CPU it has the options and the errors that do not need a GPU; options with `capturable`, and errors of `fused`
beside other flags, are in the part for CUDA.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pair import make_params, set_grads
from torch import Tensor, nn
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, OptimizerInfo, optim_db

import fusedopt

pytestmark = pytest.mark.steps

OURS = {
    torch.optim.SGD: fusedopt.SGD,
    torch.optim.RMSprop: fusedopt.RMSprop,
    torch.optim.Adagrad: fusedopt.Adagrad,
    torch.optim.Adam: fusedopt.Adam,
    torch.optim.AdamW: fusedopt.AdamW,
    torch.optim.Rprop: fusedopt.Rprop,
    torch.optim.RAdam: fusedopt.RAdam,
    torch.optim.Adadelta: fusedopt.Adadelta,
    torch.optim.Adamax: fusedopt.Adamax,
    torch.optim.NAdam: fusedopt.NAdam,
    torch.optim.ASGD: fusedopt.ASGD,
}
INFOS = [info for info in optim_db if info.optim_cls in OURS]
INPUTS = [
    pytest.param(info, x, dtype, id=f"{info.name}-{x.desc}-{str(dtype)[6:]}")
    for info in INFOS
    for dtype in (torch.float32, torch.float64)
    for x in info.optim_inputs_func(device="cpu", dtype=dtype)
]
ERRORS = [
    pytest.param(info, x, id=f"{info.name}-{x.optimizer_error_input.desc}")
    for info in INFOS
    for x in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
]


def test_the_database_has_all_classes_and_both_kinds_of_inputs() -> None:
    assert {info.optim_cls for info in INFOS} == set(OURS)
    assert len(INPUTS) > 60
    assert len(ERRORS) > 30


def implementations(info: OptimizerInfo, kwargs: dict[str, Any]) -> list[dict[str, bool]]:
    """Each of torch's implementations that takes these options."""
    if any(isinstance(value, Tensor) for value in (*kwargs.values(), *kwargs.get("betas", ()))):
        return [{}]  # the others do not take tensors on the CPU
    return [{}, *({name: True} for name in ("foreach", "fused") if name in info.supported_impls)]


@pytest.mark.parametrize(("info", "entry", "dtype"), INPUTS)
def test_input(info: OptimizerInfo, entry: Any, dtype: torch.dtype) -> None:
    for flags in implementations(info, entry.kwargs):
        ours, theirs = (make_params(dtypes=(dtype,)) for _ in range(2))
        opt = OURS[info.optim_cls](ours, **copy.deepcopy(entry.kwargs), **flags)
        twin = info.optim_cls(theirs, **copy.deepcopy(entry.kwargs), **flags)
        for i in range(5):
            set_grads(ours, i)
            set_grads(theirs, i)
            assert opt.step() == twin.step()
            torch.testing.assert_close(ours, theirs)
            for p, q in zip(ours, theirs, strict=True):
                torch.testing.assert_close(dict(opt.state.get(p, {})), dict(twin.state.get(q, {})))
        assert {e.path for e in opt.explain()} == {"fused"}
        assert opt.state_dict()["param_groups"][0].items() >= twin.state_dict()["param_groups"][0].items()


@pytest.mark.parametrize(("info", "entry", "dtype"), INPUTS)
def test_learns(info: OptimizerInfo, entry: Any, dtype: torch.dtype) -> None:
    """Goes in the right direction, as torch's test_forloop_goes_right_direction asks of its own."""
    weight = nn.Parameter(torch.randn(10, 5, dtype=dtype))
    bias = nn.Parameter(torch.randn(10, dtype=dtype))
    x = torch.randn(5, dtype=dtype)
    opt = OURS[info.optim_cls]([weight, bias], **copy.deepcopy(entry.kwargs))

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (weight.mv(x) + bias).pow(2).sum()
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(10):
        opt.step(closure)
    last = closure().item()
    assert last > first if opt.param_groups[0]["maximize"] else last < first


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_schedulers(info: OptimizerInfo) -> None:
    for makers in info.scheduler_inputs:
        ours, theirs = make_params(), make_params()
        runs = [(OURS[info.optim_cls](ours, lr=0.01), ours), (info.optim_cls(theirs, lr=0.01), theirs)]
        schedulers = [[make(opt) for make in makers] for opt, _ in runs]
        for i in range(12):
            for (opt, params), own in zip(runs, schedulers, strict=True):
                set_grads(params, i)
                opt.step()
                for s in own:
                    s.step(i) if isinstance(s, torch.optim.lr_scheduler.ReduceLROnPlateau) else s.step()
        assert runs[0][0].param_groups[0]["lr"] == runs[1][0].param_groups[0]["lr"]
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("info", "entry"), ERRORS)
def test_error(info: OptimizerInfo, entry: Any) -> None:
    """The type and the message that the database gives."""
    cls, x = OURS[info.optim_cls], entry.optimizer_error_input
    params = make_params() if x.params is None else x.params
    kwargs = copy.deepcopy(x.kwargs)
    if entry.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR:
        if issubclass(entry.error_type, Warning):
            with pytest.warns(entry.error_type, match=entry.error_regex):
                cls(params, **kwargs)
        else:
            with pytest.raises(entry.error_type, match=entry.error_regex):
                cls(params, **kwargs)
    else:
        opt = cls(params, **kwargs)
        with pytest.raises(entry.error_type, match=entry.error_regex):
            opt.step()


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_flags_are_supported_as_there(info: OptimizerInfo) -> None:
    cls = OURS[info.optim_cls]
    for flag in ("foreach", "fused", "differentiable"):
        if flag in info.supported_impls:
            assert cls(make_params(), **{flag: True}).param_groups[0][flag] is True
        elif flag == "fused":  # of ours, for GradScaler
            assert flag not in cls(make_params(), fused=True).param_groups[0]
        else:
            with pytest.raises(TypeError, match=flag):
                cls(make_params(), **{flag: True})
    assert cls(make_params(), capturable=True).param_groups[0]["capturable"] is True
