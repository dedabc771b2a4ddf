"""Whoever watches the operations of a step sees those of torch's own classes: modes, function transforms, tangents."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any

import gpu
import pytest
import torch
import torch.autograd.forward_ad as fw
from cases import BY_NAME, FAST_CASES, ONE_OF_EACH, Case
from pair import each_class, make_params, make_twin, set_grads
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fusedopt

# torch's ASGD asks whether mu is 1, which of a fake tensor nobody knows.
on_fakes = pytest.mark.parametrize("case", [case for case in FAST_CASES if case.cls is not fusedopt.ASGD], ids=str)


class Operations(TorchDispatchMode):
    """The names of the operations that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_record_function" not in str(func):  # for the profiler
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """The names of the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_record_function" not in func.__name__:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def run(source: str) -> str:
    """What another process prints: there the mode can be in force before the package is imported."""
    code = f"import torch\nP = torch.nn.Parameter\n{source}"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@each_class
@pytest.mark.parametrize("mode", [Operations, Functions])
def test_a_mode_sees_the_operations(case: Case, mode: type[Operations] | type[Functions]) -> None:
    seen = []
    params, theirs = make_params(), make_params()
    for opt in (case.make(params), make_twin(case, theirs)):
        for i in range(2):
            set_grads(opt.param_groups[0]["params"], i)
            with mode() as active:
                opt.step()
        seen.append(active.names)
        if isinstance(opt, fusedopt.optim._fused.FusedStep):
            assert {e.path for e in opt.explain()} == {"torch"}
    for p, q in zip(params, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)
    if case.twin:
        assert seen[0] == seen[1] if mode is Operations else set(seen[0]) - {"__get__"} == set(seen[1]) - {"__get__"}
    assert len(seen[0]) > 2 * len(params)


@each_class
def test_a_default_device_is_no_observer(case: Case) -> None:
    params = make_params()
    opt = case.make(params)
    for i in range(2):
        set_grads(params, i)
        with torch.device(gpu.TEST_DEVICE):
            opt.step()
        assert {e.path for e in opt.explain()} == {"fused"}


@pytest.mark.parametrize("path", ["fused", "torch"])
@pytest.mark.parametrize("cls", [fusedopt.AdamW, fusedopt.LAMB, fusedopt.SWATS])
def test_states_of_8_bits_begin_under_any_default_device(cls: Any, path: str) -> None:
    results = []
    for device in (torch.device("meta"), contextlib.nullcontext()):
        params = make_params()
        opt = cls(params, state_dtype="8bit", min_8bit_size=0)
        set_grads(params, 0)
        with device, fusedopt.native() if path == "torch" else contextlib.nullcontext():
            opt.step()
        assert {e.path for e in opt.explain()} == {path}
        results.append((params, [opt.state[p]["exp_avg"] for p in params]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@on_fakes
def test_fake_tensors(case: Case) -> None:
    """First a step of fake tensors, then of real ones, then of fake ones again."""
    for fake in (True, False, True):
        with FakeTensorMode(allow_non_fake_inputs=False) if fake else torch.no_grad():
            params = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(5))]
            opt = case.make(params)
            for _ in range(2):
                for p in params:
                    p.grad = torch.ones_like(p)
                opt.step()
                assert {e.path for e in opt.explain()} == {"torch" if fake else "fused"}
            for p in params:
                shapes = {name: v.shape for name, v in opt.state.get(p, {}).items() if v.dim()}
                assert shapes == dict.fromkeys(case.states, p.shape)
        if not fake:
            assert all((p != 1).all() for p in params)


# torch's Rprop assigns to elements, which fake tensors let nobody do then.
@pytest.mark.parametrize("case", [case for case in ONE_OF_EACH if case.cls is not fusedopt.Rprop], ids=str)
def test_fake_parameters_of_a_mode_that_is_over(case: Case) -> None:
    with FakeTensorMode():
        params = [nn.Parameter(torch.ones(3, 4))]
        opt = case.make(params)
        params[0].grad = torch.ones(3, 4)
    opt.step()
    assert {e.path for e in opt.explain()} == {"torch"}


@each_class
def test_real_parameters_in_a_fake_mode_are_refused_as_by_torch(case: Case) -> None:
    params = make_params([(3,), (4,)])
    opt = case.make(params)
    set_grads(params, 0)
    before = [p.detach().clone() for p in params]
    states = {p: dict(state) for p, state in opt.state.items()}
    with FakeTensorMode(), pytest.raises(Exception, match="convert all Tensors to FakeTensors"):
        opt.step()
    torch.testing.assert_close([p.detach() for p in params], before, rtol=0, atol=0)
    assert {p: dict(state) for p, state in opt.state.items() if state} == states
    opt.step()
    assert {e.path for e in opt.explain()} == {"fused"}
    assert all((p != q).all() for p, q in zip(params, before, strict=True))


@pytest.mark.parametrize("mode", ["FakeTensorMode()", "torch.inference_mode()", "torch.device('meta')"])
def test_import_under_a_mode(mode: str) -> None:
    classes = sorted({case.cls.__name__ for case in FAST_CASES})
    out = run(f"""
from torch._subclasses import FakeTensorMode
with {mode}: import fusedopt
def step(cls):
    q = P(torch.ones(9)); o = cls([q], lr=.1); q.grad = torch.ones(9); o.step()
    return o.explain()[0].path, bool((q != 1).all()) if real else None
for cls in {classes}:
    cls = getattr(fusedopt, cls)
    real = False
    if {mode!r} == "FakeTensorMode()" and cls is not fusedopt.ASGD:
        with {mode}: step(cls)
    real = True
    print(*step(cls))
""")
    assert out.splitlines() == ["fused True"] * len(classes)


def test_a_first_step_in_inference_mode() -> None:
    out = run("""
import fusedopt
a, b = P(torch.ones(9)), P(torch.ones(9))
o, other = fusedopt.SGD([a], lr=.1), fusedopt.SGD([b], lr=.1)
a.grad, b.grad = torch.ones(9), torch.ones(9)
with torch.inference_mode(): o.step()
other.step()
print(other.explain()[0].path, float(a.detach()[0]), float(b.detach()[0]))
""")
    assert out.split() == ["fused", "0.8999999761581421", "0.8999999761581421"]


@pytest.mark.parametrize("name", ["sgd-nesterov-decay", "adamw-decay", "rmsprop-decay", "delta-bar-delta-decay"])
def test_a_traced_step_has_the_update_in_its_graph(name: str) -> None:
    case = BY_NAME[name]

    def step(value: Tensor, grad: Tensor) -> Tensor:
        p = value.clone().requires_grad_(True)
        opt = case.make([p])
        p.grad = grad
        opt.step()
        return p.detach()

    value, grad = torch.linspace(1, 2, 5), torch.linspace(-1, 1, 5)
    traced = make_fx(step)(value, grad)
    torch.testing.assert_close(traced(value + 1, -grad), step(value + 1, -grad), rtol=1e-6, atol=1e-6)
    assert not torch.equal(traced(value, grad), value)


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")  # torch's own way to some derivatives
@each_class
@pytest.mark.parametrize("dual", ["gradient", "parameter"])
def test_tangents(case: Case, dual: str) -> None:
    results: list[Any] = []
    for make in (case.make, lambda params: make_twin(case, params)):
        params, grads = make_params(), make_params()
        ones = [torch.ones_like(p) for p in params]
        with fw.dual_level(), torch.no_grad():
            if dual == "parameter":
                params = [fw.make_dual(p.detach(), t).requires_grad_() for p, t in zip(params, ones, strict=True)]
            opt = make(params)
            for p, g, t in zip(params, grads, ones, strict=True):
                p.grad = fw.make_dual(g.detach(), t) if dual == "gradient" else g.detach()
            try:
                opt.step()
            except (RuntimeError, NotImplementedError) as error:  # torch has no derivative for some
                results.append(str(error))
            else:
                results.append([fw.unpack_dual(p).tangent for p in params])
    if case.twin:
        torch.testing.assert_close(*results) if isinstance(results[1], list) else None
        assert isinstance(results[1], list) or results[0] == results[1]
    else:
        moves = not case.by_sign or dual == "parameter"
        assert all((t is not None and bool(t.abs().sum() > 0)) == moves for t in results[0])


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")
def test_steps_after_a_dual_level_are_fused_again() -> None:
    params = make_params()
    opt = fusedopt.AdamW(params)
    set_grads(params, 0)
    with fw.dual_level():
        opt.step()
        assert {e.reason for e in opt.explain()} == {"forward-mode differentiation is active"}
    opt.step()
    assert {e.path for e in opt.explain()} == {"fused"}


def test_inside_a_function_transform_captured_parameters_are_refused_as_by_torch() -> None:
    p = nn.Parameter(torch.ones(3))
    opt = fusedopt.SGD([p], lr=0.1)
    p.grad = torch.ones(3)

    def f(x: Tensor) -> Tensor:
        opt.step()
        return (x * x).sum()

    with pytest.raises(RuntimeError, match="in-place operation"):
        torch.func.grad(f)(torch.ones(2))
    assert torch.equal(p, torch.ones(3))
