"""Steps that torch refuses in the middle of its work: everything is put back, and copies for that are rare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BF16, BY_NAME, ONE_OF_EACH, Case
from pair import counts_steps, each_class, make_params, set_grads
from refused import GOOD, assert_refused, good, start, started
from stored_states import in_formats
from torch import Tensor, nn
from torch.optim import Optimizer

import fusedopt
from fusedopt import native
from fusedopt.optim import _undo

pytestmark = pytest.mark.steps
WITH_STATES = [case for case in ONE_OF_EACH if case.states and case.cls is not fusedopt.SWATS]
FORMATS: dict[str, dict[str, Any]] = {
    "average": {"ema_decay": 0.9},
    "bfloat16": {"state_dtype": BF16},
    "by chance": {"state_dtype": BF16, "stochastic_rounding": True},
    "8bit": {"state_dtype": "8bit", "min_8bit_size": 0},
}


def begin(case: Case, good: str, last: Tensor, steps: int = 0, **options: Any) -> tuple[Optimizer, list[Tensor]]:
    """A good parameter in one group, then a good one and the last in another."""
    params = [GOOD[good](), nn.Parameter(torch.ones(5)), last]
    opt = case.make([{"params": params[:1]}, {"params": params[1:]}], **options)
    for i in range(steps + 1):
        set_grads(params, i)
        if i < steps:
            opt.step()
    return opt, params


def expanded() -> Tensor:
    return torch.zeros(1).expand(4).requires_grad_()


@good
@each_class
def test_expanded_parameter(case: Case, good: str) -> None:
    opt, params = begin(case, good, expanded())
    assert_refused(opt, params, RuntimeError, "more than one element of the written-to tensor")


@pytest.mark.parametrize("good", ["fused", "strided"])
@in_formats(FORMATS, ONE_OF_EACH)
def test_expanded_parameter_in_other_formats(case: Case, formats: str, good: str) -> None:
    opt, params = begin(case, good, expanded(), **FORMATS[formats])
    assert_refused(opt, params, RuntimeError, "more than one element of the written-to tensor")


@good
@each_class
def test_parameter_made_in_inference_mode(case: Case, good: str) -> None:
    with torch.inference_mode():
        last = nn.Parameter(torch.ones(4), requires_grad=False)
    opt, params = begin(case, good, last)
    assert_refused(opt, params, RuntimeError, "Inplace update to inference tensor")
    with torch.inference_mode():
        opt.step()
    assert not bool((params[2] == 1).all())


# The average is not for complex parameters.
@pytest.mark.parametrize(
    ("good", "formats"),
    [*((good, {}) for good in GOOD), *((good, {"ema_decay": 0.9}) for good in ("fused", "strided"))],
)
@pytest.mark.parametrize("case", [case for case in WITH_STATES if case.cls is not fusedopt.Adagrad], ids=str)
def test_states_made_in_inference_mode(case: Case, formats: dict[str, Any], good: str) -> None:
    opt, params = begin(case, good, nn.Parameter(torch.ones(4)), **formats)
    with torch.inference_mode():  # Adagrad has made them before
        opt.step()
    for _ in range(2):
        assert_refused(opt, params, RuntimeError, "Inplace update to inference tensor")


@good
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_learning_rate_that_is_a_tensor_under_foreach(name: str, good: str) -> None:
    opt, params = begin(BY_NAME[name], good, nn.Parameter(torch.ones(4)), 1, foreach=True)
    opt.param_groups[1]["lr"] = torch.tensor(0.1)
    with native():
        assert_refused(opt, params, RuntimeError, "lr as a Tensor is not supported")


@good
@started
@pytest.mark.parametrize("case", [case for case in ONE_OF_EACH if case.twin], ids=str)
def test_option_that_a_group_lacks(case: Case, steps: int, good: str) -> None:
    opt, params = start(case, good, steps)
    del opt.param_groups[1]["foreach"]
    with native():
        assert_refused(opt, params, KeyError, "foreach")


@good
@pytest.mark.parametrize("case", [case for case in WITH_STATES if counts_steps(case)], ids=str)
def test_step_count_that_is_missing(case: Case, good: str) -> None:
    """Of the one parameter that has stepped: the others begin."""
    params = [GOOD[good](), nn.Parameter(torch.ones(4))]
    opt = case.make([{"params": params[:1]}, {"params": params[1:]}])
    set_grads(params, 0, without={0})
    opt.step()
    set_grads(params, 1)
    del opt.state[params[1]]["step"]
    assert_refused(opt, params, KeyError, "step")


@good
def test_sparse_momentum_and_a_dense_gradient(good: str) -> None:
    last = nn.Parameter(torch.ones(4, 2))
    opt, params = begin(BY_NAME["sgd-momentum"], good, last)
    assert last.grad is not None
    last.grad = last.grad.to_sparse(1)
    opt.step()
    set_grads(params, 1)
    assert_refused(opt, params, RuntimeError, "add\\(sparse, dense\\) is not supported")


@good
@pytest.mark.parametrize("name", ["adam", "rmsprop", "adagrad-lr-decay", "rprop-bounds"])
def test_gradient_that_is_a_lazy_conjugate(name: str, good: str) -> None:
    """As autograd may give one to a complex parameter. torch's SGD takes it."""
    opt, params = begin(BY_NAME[name], good, nn.Parameter(torch.ones(4, dtype=torch.complex64)))
    assert params[2].grad is not None
    params[2].grad = params[2].grad.conj()
    assert_refused(opt, params, RuntimeError, "unresolved conjugated tensors")


@pytest.mark.parametrize("good", ["fused", "strided"])
@in_formats(FORMATS, WITH_STATES)
def test_parameter_of_another_shape_in_other_formats(case: Case, formats: str, good: str) -> None:
    opt, params = begin(case, good, nn.Parameter(torch.ones(4, 2)), 2, **FORMATS[formats])
    params[2].data = torch.ones(5, 2)
    set_grads(params, 3)
    assert_refused(opt, params, RuntimeError, "shape|size of tensor|dtype")


@pytest.mark.parametrize("good", ["fused", "strided"])
@pytest.mark.parametrize("formats", FORMATS)
def test_sparse_momentum_in_other_formats(formats: str, good: str) -> None:
    opt, params = begin(BY_NAME["sgd-momentum"], good, nn.Parameter(torch.ones(4, 2)), **FORMATS[formats])
    assert params[2].grad is not None
    params[2].grad = params[2].grad.to_sparse(1)
    if formats in ("average", "bfloat16"):
        opt.step()
        assert opt.state[params[2]]["momentum_buffer"].is_sparse
        return
    assert_refused(opt, params, RuntimeError, "momentum of sparse gradients is sparse")
    set_grads(params, 0)
    opt.step()
    set_grads(params, 1)
    params[2].grad = params[2].grad.to_sparse(1)
    opt.step()  # to a momentum that is dense


USUAL: dict[str, Callable[[], list[Tensor]]] = {
    "float32": make_params,
    "bfloat16": lambda: make_params(dtypes=(BF16,)),
    "strided": lambda: [nn.Parameter(torch.ones(8)[::2]), *make_params()],
    "complex": lambda: make_params(dtypes=(torch.complex64, torch.float64)),
}


@pytest.fixture
def no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_undo, "_restored_on_error", lambda *_: pytest.fail("copied parameters and states"))


@pytest.mark.usefixtures("no_copies")
@pytest.mark.parametrize("kind", USUAL)
@each_class
def test_nothing_is_copied_where_there_is_nothing_to_refuse(case: Case, kind: str) -> None:
    params = USUAL[kind]()
    opt = case.make([{"params": params[:1]}, {"params": params[1:], "lr": 0.02}])
    for i in range(4):
        set_grads(params, i)
        params[1].grad = torch.ones((), dtype=params[1].dtype).expand(params[1].shape)  # as sum() gives it
        with native():
            opt.step()
        assert {e.path for e in opt.explain()} == {"torch"}  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_copies")
@pytest.mark.parametrize("name", ["sgd", "sgd-momentum", "adagrad-lr-decay"])
def test_nothing_is_copied_for_sparse_gradients(name: str) -> None:
    params = [nn.Parameter(torch.ones(6, 3)), *make_params([(4,)])]
    opt = BY_NAME[name].make(params)
    for i in range(4):
        set_grads(params, i)
        params[0].grad = params[0].grad.to_sparse(1)
        opt.step()
        assert opt.explain()[0].path == "torch"  # type: ignore[attr-defined]
