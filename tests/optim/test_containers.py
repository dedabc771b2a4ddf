"""What people put where torch has lists, dicts and tensors: other containers, other values, other keys."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BY_NAME, Case
from pair import Pair, counts_steps, each_class, make_params, make_twin, paths_within_a_group, set_grads
from torch import Tensor, nn

import fusedopt

# ---- Containers ----

SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "deque": collections.deque,
    "dict-values": lambda items: dict(enumerate(items)).values(),
    "user-list": collections.UserList,
}
OF_PARAMS = SEQUENCES | {
    "parameter-list": nn.ParameterList,
    "parameter-dict": lambda items: dict.fromkeys(items).keys(),
}


def assert_alike(case: Case, change: Callable[[Any], object], *, later: bool) -> None:
    """That a change to the optimizer changes no result; one of the parameters takes torch's path."""
    shapes, dtypes = [(3,), (17, 5), (8,)], (torch.float32, torch.complex64, torch.float32)
    both = []
    for _ in range(2):
        params = make_params(shapes, dtypes)
        opt = case.make([{"params": params[:2]}, {"params": params[2:], "lr": 0.05}])
        both.append((opt, params))
    for seed in range(4):
        if seed == later:
            change(both[0][0])
        for opt, params in both:
            set_grads(params, seed, without={2} if seed == 2 else ())
            opt.step()
        (ours, a), (other, b) = both
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        torch.testing.assert_close([dict(ours.state[p]) for p in a], [dict(other.state[p]) for p in b], rtol=0, atol=0)
    paths = [e.path for e in ours.explain()]  # type: ignore[attr-defined]
    assert paths == [*paths_within_a_group(case, ["fused", "torch"]), "fused"]
    assert ours.bytes_per_step() == other.bytes_per_step()  # type: ignore[attr-defined]
    ours.zero_grad()
    assert all(p.grad is None for p in a)


@each_class
@pytest.mark.parametrize("kind", OF_PARAMS)
def test_container_of_parameters(case: Case, kind: str) -> None:
    def change(opt: Any) -> None:
        for group in opt.param_groups:
            group["params"] = OF_PARAMS[kind](group["params"])

    assert_alike(case, change, later=False)
    assert_alike(case, change, later=True)


@each_class
@pytest.mark.parametrize("kind", [*SEQUENCES, "user-dict"])
def test_container_of_groups(case: Case, kind: str) -> None:
    def change(opt: Any) -> None:
        if kind == "user-dict":
            opt.param_groups = [collections.UserDict(group) for group in opt.param_groups]
        else:
            opt.param_groups = SEQUENCES[kind](opt.param_groups)

    assert_alike(case, change, later=False)
    assert_alike(case, change, later=True)


MAPPINGS: dict[str, Callable[[Any], Any]] = {
    "dict": dict,
    "ordered-dict": collections.OrderedDict,
    "user-dict": collections.UserDict,
    "chain-map": collections.ChainMap,
}


@each_class
@pytest.mark.parametrize("kind", MAPPINGS)
def test_container_of_states(case: Case, kind: str) -> None:
    def change(opt: Any) -> None:
        opt.state = MAPPINGS[kind](opt.state)

    assert_alike(case, change, later=True)


def test_what_cannot_be_walked_over_is_refused() -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    opt = fusedopt.SGD([p])
    opt.param_groups[0]["params"] = 3
    with pytest.raises(TypeError, match="must be iterable"):
        opt.step()
    opt.param_groups[0]["params"] = [p, 3]
    with pytest.raises(TypeError, match="optimizer can only optimize Tensors"):
        opt.step()
    del opt.param_groups[0]["params"]
    with pytest.raises(KeyError, match="params"):
        opt.step()
    assert bool((p == 1).all())


@each_class
def test_empty_first_group_with_max_grad_norm(case: Case) -> None:
    for dtype in torch.float32, torch.float64:
        params = make_params([(3,), (4,)], [dtype])
        opt = case.make([{"params": []}, {"params": params[:1]}, {"params": params[1:]}], max_grad_norm=0.5)
        set_grads(params, 0)
        norm = torch.linalg.vector_norm(torch.cat([p.grad for p in params if p.grad is not None]))
        opt.step()
        torch.testing.assert_close(opt.grad_norm, norm)  # type: ignore[attr-defined]
    opt = case.make([{"params": []}], max_grad_norm=0.5)
    opt.step()
    torch.testing.assert_close(opt.grad_norm, torch.tensor(0.0), check_device=False)  # type: ignore[attr-defined]


# ---- States ----

KINDS: dict[str, Callable[[], list[Tensor]]] = {
    "fused": lambda: make_params([(4,), (3,)]),
    "complex": lambda: make_params([(4,), (3,)], [torch.complex64]),
    "strided": lambda: [nn.Parameter(torch.arange(8.0)[::2]), *make_params([(3,)])],
}
VALUES = {"number": 3, "none": None, "list": [1, 2], "tensors": {"a": torch.ones(2)}}


@each_class
@pytest.mark.parametrize("kind", [*KINDS, "native"])
def test_values_in_a_state_that_are_no_tensors(case: Case, kind: str) -> None:
    make = KINDS.get(kind, KINDS["fused"])
    a, b = make(), make()
    ours, plain = case.make(a), case.make(b)
    for seed in range(3):
        set_grads(a, seed)
        set_grads(b, seed)
        if kind == "native":
            with fusedopt.native():
                ours.step()
                plain.step()
        else:
            ours.step()
            plain.step()
        if seed == 0:
            for p in a:
                ours.state[p].update(VALUES)
        if seed == 1:
            ours.load_state_dict(ours.state_dict())
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    for p in a:
        assert all(ours.state[p][name] == value for name, value in VALUES.items() if name != "tensors")
        assert bool((ours.state[p]["tensors"]["a"] == 1).all())


@each_class
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_count_that_is_a_plain_number(case: Case, kind: str) -> None:
    """As with torch's class, which takes it or refuses."""
    if not counts_steps(case):
        return
    results: list[list[Tensor]] = []
    for natively in True, False:
        params = KINDS[kind]()
        opt = make_twin(case, params) if natively and case.twin else case.make(params)
        with fusedopt.native() if natively else contextlib.nullcontext():
            for seed in range(3):
                set_grads(params, seed)
                before = [p.detach().clone() for p in params]
                with contextlib.suppress(RuntimeError):
                    opt.step()
                    before = []
                assert all(map(torch.equal, params, before))
                for p in params:
                    opt.state[p]["step"] = 1
        results.append(params)
    torch.testing.assert_close(*results)


@each_class
def test_state_keys_that_are_no_parameters(case: Case) -> None:
    pair = Pair(case)
    pair.step(0)
    for opt, _ in pair:
        opt.state["global_step"] = 7
        opt.state["notes"] = {"exp_avg": "none"}
    pair.step(1)
    for opt, _ in pair:
        opt.load_state_dict(opt.state_dict())
        assert opt.state["global_step"] == 7
        assert opt.state["notes"]["exp_avg"] == "none"
    pair.step(2)


def test_state_keys_that_are_no_parameters_in_another_momentum_form() -> None:
    params = make_params()
    opt = BY_NAME["sgd-momentum"].make(params)
    set_grads(params, 0)
    opt.step()
    opt.state["global_step"] = 7
    classic = BY_NAME["sgd-classic"].make(make_params())
    classic.load_state_dict(opt.state_dict())
    assert classic.state["global_step"] == 7
