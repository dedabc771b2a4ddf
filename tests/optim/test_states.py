"""States in other mappings than dictionaries, without any, and of other dtypes."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from cases import Case
from pair import Pair, assert_identical, each_class, make_params, native_twin, set_grads, step_both, step_natively
from torch import Tensor

import fusedopt
from fusedopt.optim._codecs import tensors_in

pytestmark = [pytest.mark.steps, pytest.mark.on_gpu]


class Spy(dict[str, Any]):
    """A dict in which torch finds something else than its entries."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return value + 1 if key == "step" else value


@each_class
@pytest.mark.parametrize("kind", [collections.UserDict, collections.OrderedDict, collections.ChainMap, Spy])
def test_states_in_other_mappings(case: Case, kind: type[Any]) -> None:
    """As the class does that torch has, or that stands beside the rule in plain PyTorch: not as another reference,
    which may ask for entries in another way.
    """
    a, b = make_params(), make_params()
    ours, theirs = case.make(a), native_twin(case, b)
    path = "fused" if kind is collections.OrderedDict else "torch"
    for i in range(4):
        set_grads(a, i)
        set_grads(b, i)
        if i:
            step_both(ours, theirs)
            assert {e.path for e in ours.explain()} == {path}
            assert_identical(ours, a, theirs, b, [path] * len(a))
            continue
        for opt in ours, theirs:
            step_natively(opt)
            opt.state.update({p: kind(state) for p, state in opt.state.items()})


@each_class
def test_an_empty_mapping_as_state(case: Case) -> None:
    pair = Pair(case)
    for opt, params in pair:
        for p in params:
            opt.state[p] = collections.UserDict(opt.state.get(p, {}))
    for i in range(3):
        pair.step(i)


def test_a_class_that_makes_no_states_is_left_to_torch() -> None:
    class Forgetful(fusedopt.AdamW):
        def _init_states(self, group: dict[str, Any], params: list[Tensor]) -> None:
            pass

    params = make_params()
    opt = Forgetful(params)
    before = [p.detach().clone() for p in params]
    set_grads(params, 0)
    opt.step()
    assert all((p != q).all() for p, q in zip(params, before, strict=True))
    assert {e.path for e in opt.explain()} == {"torch"}
    opt.step()
    assert {e.path for e in opt.explain()} == {"fused"}


def test_a_step_count_of_eight_bytes_is_one_to_its_last_byte() -> None:
    params = make_params([(3,), (3,)])
    opt = fusedopt.AdamW(params)
    set_grads(params, 0)
    opt.step()
    memory = torch.zeros(2)
    opt.state[params[0]]["step"] = memory.view(torch.float64)[0]
    opt.state[params[1]]["step"] = memory[1]
    opt.step()
    assert {e.path for e in opt.explain()} == {"torch"}


@pytest.mark.parametrize("formats", [{}, {"ema_decay": 0.5}, {"state_dtype": "8bit", "min_8bit_size": 0}], ids=str)
def test_adagrads_states_in_shared_memory(formats: dict[str, Any]) -> None:
    """Which only its class makes at once, so that processes may be given them."""
    results = []
    for shared in (True, False):
        params = make_params(dtypes=(torch.float32,))
        opt = fusedopt.Adagrad(params, **formats)
        if shared:
            opt.share_memory()
        for i in range(2):
            set_grads(params, i)
            opt.step()
        tensors = [t for p in params for name, v in opt.state[p].items() if name != "step" for t in tensors_in(v)]
        assert not shared or all(t.is_shared() for t in tensors)
        assert {e.path for e in opt.explain()} == {"fused"}
        results.append([*params, *tensors])
    torch.testing.assert_close(*results, rtol=0, atol=0)
