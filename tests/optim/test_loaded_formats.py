"""What options of storage make of a state that another class, or a model in another dtype, has saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BF16, F16, F32
from stored_states import assert_equal, give_gradients, parameters, saved
from torch import Tensor

import fusedopt

SHAPE = [(5000,)]


def stepped(make: Any, dtype: torch.dtype, **options: Any) -> tuple[list[Tensor], Any]:
    """Parameters and their optimizer, after a step."""
    params = parameters(dtype, SHAPE)
    opt = make(params, lr=0.01, **options)
    give_gradients(params, 0)
    opt.step()
    return params, opt


def through_torch(opt: Any, dtype: torch.dtype) -> Any:
    """The state_dict of torch's AdamW that has loaded that of `opt` for a model in another dtype."""
    theirs = torch.optim.AdamW(parameters(dtype, SHAPE))
    theirs.load_state_dict(saved(opt))
    return theirs.state_dict()


@pytest.mark.parametrize(
    ("name", "theirs", "ours", "message"),
    [
        ("RMSprop", {"centered": True}, {"state_dtype": "8bit"}, "centered=True takes the root"),
        ("RMSprop", {"centered": True}, {"state_dtype": BF16}, "centered=True takes the root"),
        ("SGD", {"differentiable": True}, {"ema_decay": 0.9}, "ema_decay is not for differentiable=True"),
    ],
    ids=["centered-8bit", "centered-bfloat16", "differentiable-ema"],
)
def test_what_the_constructor_refuses_is_not_loaded_either(
    name: str, theirs: dict[str, Any], ours: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(fusedopt, name)(parameters(F32, SHAPE), lr=0.01, **theirs, **ours)
    other = getattr(torch.optim, name)(parameters(F32, SHAPE), lr=0.01, **theirs)
    _, opt = stepped(getattr(fusedopt, name), F32, **ours)
    before, state = saved(opt), dict(opt.state)
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(other.state_dict())
    assert opt.state_dict()["param_groups"] == before["param_groups"]
    assert all(opt.state[p] is values for p, values in state.items())
    opt.step()  # and goes on


@pytest.mark.parametrize("way", ["of a run that rounds by chance", "through torch's class in bfloat16"])
def test_an_average_is_in_the_dtype_that_it_can_move_in(way: str) -> None:
    """In bfloat16 to nearest, it would stand still."""
    if way.startswith("of"):
        _, opt = stepped(fusedopt.AdamW, BF16, stochastic_rounding=True, ema_decay=0.999)
        assert opt.state_dict()["state"][0]["average"].dtype == BF16
        state = saved(opt)
    else:
        state = through_torch(stepped(fusedopt.AdamW, F32, ema_decay=0.999)[1], BF16)
    params = parameters(F32, SHAPE)
    other = fusedopt.AdamW(params, lr=0.0, weight_decay=0.0, ema_decay=0.999)
    other.load_state_dict(state)
    average = other.state[params[0]]["average"]
    assert average.dtype == F32
    with torch.no_grad():
        params[0].fill_(1000.0)
    other.state[params[0]]["step"].fill_(1e6)
    other.param_groups[0]["lr"] = 0.0
    before = average.clone()
    give_gradients(params, 1)
    other.step()
    torch.testing.assert_close(average, before.lerp(torch.full_like(before, 1000.0), 0.001), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("between", [F32, F16], ids=["float32", "float16"])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bfloat16", "float16"])
def test_masters_that_torchs_class_has_cast_are_not_taken_for_bits(dtype: torch.dtype, between: torch.dtype) -> None:
    there, opt = stepped(fusedopt.AdamW, dtype, master_weights=True)
    params = [p.detach().clone().requires_grad_() for p in there]
    other = fusedopt.AdamW(params, lr=0.01, master_weights=True)
    other.load_state_dict(through_torch(opt, between))
    if (dtype, between) == (F16, F32):  # masters as they were
        assert_equal(other.exact_parameters()[0], opt.exact_parameters()[0])
    else:
        assert_equal(other.exact_parameters()[0], params[0].detach().float())
    give_gradients(params, 1)
    other.step()
    assert [row.path for row in other.explain()] == ["fused"]


@pytest.mark.parametrize("options", [{"ema_decay": 0.9}, {"stochastic_rounding": True, "state_dtype": BF16}], ids=str)
def test_a_model_that_becomes_float64_is_refused_later_too(options: dict[str, Any]) -> None:
    params, opt = stepped(fusedopt.SGD, F32, momentum=0.9, **options)
    params[0].data = params[0].data.double()
    params[0].grad = torch.ones_like(params[0])
    before = [params[0].detach().clone(), *(v.clone() for v in opt.state[params[0]].values() if torch.is_tensor(v))]
    with pytest.raises(ValueError, match=r"there is one of torch\.float64"):
        opt.step()
    after = [params[0].detach(), *(v for v in opt.state[params[0]].values() if torch.is_tensor(v))]
    for a, b in zip(after, before, strict=True):
        assert_equal(a, b)
