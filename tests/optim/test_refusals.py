"""What is refused: as torch does it, by type and message, and with nothing changed."""

from __future__ import annotations

from typing import Any

import gpu
import pytest
import torch
from cases import BY_NAME, ONE_OF_EACH, Case
from pair import counts_steps, each_class, make_params, make_twin, set_grads
from refused import assert_refused, error_of, good, snapshot, start, started
from torch import nn
from torch.optim import Optimizer

import fusedopt

pytestmark = [pytest.mark.steps, pytest.mark.on_gpu]

OF_TORCH = [case for case in ONE_OF_EACH if case.twin]


BAD_VALUES = [
    {"lr": -0.1},
    {"lr": float("nan")},
    {"weight_decay": -0.1},
    {"eps": -1.0},
    {"momentum": -0.5},
    {"alpha": -0.5},
    {"lr_decay": -0.5},
    {"initial_accumulator_value": -0.5},
    {"betas": (1.0, 0.9)},
    {"betas": (0.9, 1.0)},
    {"betas": (-0.1, 0.9)},
    {"betas": (0.9, -0.1)},
    {"nesterov": True, "momentum": 0},
    {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
    {"foreach": True, "fused": True},
    {"fused": True, "differentiable": True},
    {"lr": torch.tensor([0.1, 0.2])},
    {"lr": torch.tensor(0.1), "foreach": True},
]


def accepted_by(cls: type[Optimizer], kwargs: dict[str, Any]) -> bool:
    """Whether torch's class takes these options without complaint, or does not know them."""
    try:
        cls([nn.Parameter(torch.ones(2))], **kwargs)
    except TypeError:
        return True
    except (ValueError, RuntimeError):
        return False
    return True


REFUSED = [
    (case, kwargs) for case in OF_TORCH for kwargs in BAD_VALUES if case.twin and not accepted_by(case.twin, kwargs)
]


def test_the_table_of_refusals_covers_each_class() -> None:
    assert len(REFUSED) > 40
    assert {case.cls for case, _ in REFUSED} == {case.cls for case in OF_TORCH}


@pytest.mark.parametrize(("case", "kwargs"), REFUSED, ids=str)
def test_value_that_torch_refuses(case: Case, kwargs: dict[str, Any]) -> None:
    params = make_params()
    assert error_of(lambda: case.cls(params, **kwargs)) == error_of(lambda: case.twin(params, **kwargs))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        ({"trust_clip": 0.0}, "Invalid trust_clip: 0.0"),
        ({"phi": (2.0, 1.0)}, "Invalid phi"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
    ],
    ids=str,
)
def test_value_that_lamb_refuses(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fusedopt.LAMB(make_params(), **kwargs)


def bad_params() -> dict[str, Any]:
    p, q = make_params([(2,), (3,)])
    return {
        "empty": [],
        "tensor": p,
        "number": [1.0],
        "array": [p, "q"],
        "non-leaf": [p * 2],
        "two-groups": [{"params": [p]}, {"params": [q, p]}],
        "set": [{"params": {p, q}}],
        "half-named": [("p", p), q],
    }


@each_class
@pytest.mark.parametrize("kind", bad_params())
def test_parameters_that_torch_refuses(case: Case, kind: str) -> None:
    ours = error_of(lambda: case.make(bad_params()[kind]))
    assert ours == error_of(lambda: make_twin(case, bad_params()[kind]))


@each_class
@pytest.mark.parametrize("max_grad_norm", [-1.0, float("nan")])
def test_negative_max_grad_norm(case: Case, max_grad_norm: float) -> None:
    with pytest.raises(ValueError, match="Invalid max_grad_norm"):
        case.make(make_params(), max_grad_norm=max_grad_norm)


@each_class
def test_max_grad_norm_in_a_group(case: Case) -> None:
    """A wrapper that copies its keyword arguments into its groups repeats it; another value is an error."""
    params, match = make_params(), "max_grad_norm is 1.0 in a param group and {} in the optimizer.*there is one limit"
    for limit in None, 0.5:
        with pytest.raises(ValueError, match=match.format(limit)):
            case.make(
                [{"params": params[:1], "max_grad_norm": limit}, {"params": params[1:], "max_grad_norm": 1.0}],
                max_grad_norm=limit,
            )
        opt = case.make([{"params": params[:1], "max_grad_norm": limit}], max_grad_norm=limit)
        with pytest.raises(ValueError, match=match.format(limit)):
            opt.add_param_group({"params": params[1:], "max_grad_norm": 1.0})
        assert len(opt.param_groups) == 1
        opt.add_param_group({"params": params[1:], "max_grad_norm": limit})
        assert not any("max_grad_norm" in group for group in opt.param_groups)
        set_grads(params, 0)
        opt.param_groups[1]["max_grad_norm"] = 1.0
        assert_refused(opt, params, ValueError, match.format(limit))
        opt.param_groups[1]["max_grad_norm"] = limit
        opt.step()


class Wrapper(Optimizer):
    """As sharpness-aware minimization and others are: its options go into its groups, which are the base's too."""

    def __init__(self, params: Any, base: type[Optimizer], radius: float, **kwargs: Any) -> None:
        super().__init__(params, {"radius": radius, **kwargs})
        self.base = base(self.param_groups, **kwargs)
        self.param_groups = self.base.param_groups
        self.defaults.update(self.base.defaults)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.base.step(closure)


@each_class
@pytest.mark.parametrize("limit", [None, 0.5])
def test_a_wrapper_that_copies_its_options_into_its_groups(case: Case, limit: float | None) -> None:
    params, plain = make_params(), make_params()
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.05}]
    opt = Wrapper(groups, case.cls, 0.05, **case.kwargs, max_grad_norm=limit, fused=None, norm_group=None)
    alone = case.make([{"params": plain[:1]}, {"params": plain[1:], "lr": 0.05}], max_grad_norm=limit)
    for i in range(3):
        set_grads(params, i)
        set_grads(plain, i)
        opt.step()
        alone.step()
    torch.testing.assert_close(params, plain, rtol=0, atol=0)
    opt.load_state_dict(opt.state_dict())
    opt.add_param_group({"params": make_params([(2,)])})


@good
@started
@pytest.mark.parametrize("mismatch", ["shape", "dtype"])
@each_class
def test_gradient_that_does_not_fit(case: Case, good: str, steps: int, mismatch: str) -> None:
    opt, params = start(case, good, steps)
    wrong = torch.ones(4, 3) if mismatch == "shape" else torch.ones(3, 2, dtype=torch.complex64)
    params[2].grad.data = wrong
    assert_refused(opt, params, RuntimeError, "size of tensor|dtype|type|Complex|complex")
    set_grads(params, 7)
    opt.step()


@good
@pytest.mark.parametrize("case", [case for case in ONE_OF_EACH if counts_steps(case)], ids=str)
def test_missing_state(case: Case, good: str) -> None:
    opt, params = start(case, good, 2)
    del opt.state[params[2]][case.states[-1]]
    assert_refused(opt, params, KeyError, case.states[-1])


@good
def test_amsgrad_switched_on_later(good: str) -> None:
    opt, params = start(BY_NAME["adam"], good, 2)
    opt.param_groups[1]["amsgrad"] = True
    assert_refused(opt, params, KeyError, "max_exp_avg_sq")


@good
@each_class
def test_state_of_another_shape(case: Case, good: str) -> None:
    opt, params = start(case, good, 2)
    used = "momentum_buffer" if case.name.startswith("swats-switch") else case.states[0]  # it is with SGD by now
    opt.state[params[2]][used] = torch.ones(7)
    assert_refused(opt, params, RuntimeError, "size of tensor")


@good
@pytest.mark.parametrize("name", ["rmsprop-centered-momentum-decay", "adam-amsgrad-decay", "adamw-decay"])
def test_state_of_another_dtype(name: str, good: str) -> None:
    case = BY_NAME[name]
    opt, params = start(case, good, 2)
    opt.state[params[2]]["exp_avg" if "adam" in name else "grad_avg"] = torch.ones(3, 2, dtype=torch.float64)
    assert_refused(opt, params, RuntimeError, "dtype")


no_graphs = pytest.mark.skipif(gpu.ASYNCHRONOUS, reason="these tests run on a GPU, where capturable=True is legal")


@no_graphs
@good
@started
@each_class
def test_capturable_without_a_graph(case: Case, good: str, steps: int) -> None:
    opt, params = start(case, good, steps)
    opt.param_groups[1]["capturable"] = True
    assert_refused(
        opt, params, AssertionError, "If capturable=True, params and state_steps must be on supported devices"
    )


@no_graphs
@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw"])
@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_capturable_as_torch(name: str, flags: dict[str, bool]) -> None:
    """Including where torch accepts it on the CPU: in its fused form."""
    case = BY_NAME[name]
    if name == "rmsprop" and "fused" in flags:
        flags = {}
    outcomes: list[Any] = []
    for make in case.make, lambda p, **kwargs: make_twin(case, p, **kwargs):
        params = make_params()
        opt = make(params, capturable=True, **flags)
        opt.step()  # without gradients there is nothing to refuse
        set_grads(params, 0)
        try:
            opt.step()
            outcomes.append(params)
        except AssertionError as error:
            outcomes.append(str(error))
    ours, theirs = outcomes
    assert type(ours) is type(theirs)
    if isinstance(theirs, str):
        assert ours.partition(":")[0] == theirs.partition(":")[0]  # which devices follow depends on the form
    else:
        torch.testing.assert_close(ours, theirs)


def test_a_refusal_by_the_closure_changes_nothing() -> None:
    params = make_params()
    opt = fusedopt.AdamW(params)
    set_grads(params, 0)
    before = snapshot(opt, params)

    def closure() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        opt.step(closure)
    torch.testing.assert_close(snapshot(opt, params), before, rtol=0, atol=0)
