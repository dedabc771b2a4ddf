"""What people do with an optimizer other than numerics: schedulers, closures, hooks, groups, changes between steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpu
import pytest
import torch
from cases import BY_NAME, CASES, ONE_OF_EACH, Case
from pair import Pair, each_class, make_params, set_grads
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as lrs
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import fusedopt

pytestmark = [pytest.mark.steps, pytest.mark.on_gpu]


def test_every_class_is_among_the_cases() -> None:
    ours = {
        value
        for value in (getattr(fusedopt.optim, name) for name in fusedopt.optim.__all__)
        if isinstance(value, type) and issubclass(value, Optimizer) and value.__module__.startswith("fusedopt.")
    }
    without = {cls.__name__ for cls in ours - {case.cls for case in CASES}}
    assert not without, f"no cases in tests/rules/ for {', '.join(sorted(without))}: see docs/add_a_rule.md"
    assert ours == {case.cls for case in CASES} == {case.cls for case in ONE_OF_EACH}
    assert len({(case.cls, case.twin) for case in CASES}) == len({(case.cls, case.twin) for case in ONE_OF_EACH})


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "step": lambda opt: lrs.StepLR(opt, 2, gamma=0.3),
    "cosine": lambda opt: lrs.CosineAnnealingLR(opt, 5),
    "lambda": lambda opt: lrs.LambdaLR(opt, lambda epoch: 0.8**epoch),
    "sequential": lambda opt: lrs.SequentialLR(
        opt, [lrs.LinearLR(opt, 0.1, total_iters=2), lrs.ExponentialLR(opt, 0.5)], [2]
    ),
    "one-cycle": lambda opt: lrs.OneCycleLR(
        opt, 0.1, total_steps=8, cycle_momentum=bool({"momentum", "betas"} & opt.defaults.keys())
    ),
}


@each_class
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(case: Case, scheduler: str) -> None:
    pair = Pair(case)
    schedulers = [SCHEDULERS[scheduler](opt) for opt, _ in pair]
    rates = set()
    for i in range(6):
        pair.step(i)
        for s in schedulers:
            s.step()
        rates.add(pair.ours.param_groups[0]["lr"])
        assert pair.ours.param_groups[0]["lr"] == pair.theirs.param_groups[0]["lr"]
    assert len(rates) > 2


CHANGES: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.5, "lr": 0.3},  # momentum switched on
    "sgd-momentum-decay": {"momentum": 0, "weight_decay": 0.3},
    "sgd-dampening-decay": {"dampening": 0.7, "maximize": True},
    "sgd-momentum": {"nesterov": True, "lr": 1},  # an int
    "rmsprop-momentum-decay": {"alpha": 0.5, "momentum": 0.3, "eps": 0.3},
    "adagrad-lr-decay-decay": {"lr_decay": 0.9, "eps": 0.3, "lr": 0.7},
    "adam-amsgrad-decay": {"betas": (0.5, 0.6), "amsgrad": False},
    "adam-decay": {"betas": (torch.tensor(0.5), torch.tensor(0.6)), "decoupled_weight_decay": True},
    "adamw-decay": {"eps": 0.3, "maximize": True, "weight_decay": 0.9},
    "lamb-no-clip": {"betas": (0.5, 0.6), "weight_decay": 0.4, "trust_clip": 0.3},
    "lamb-no-clip-decay": {"bias_correction": False, "phi": (0.1, 0.2)},
    "sgd-classic-decay": {"nesterov": True, "lr": 0.3, "momentum": 0.5},
    "sgd-classic-dampening-decay": {"momentum": 0, "maximize": True},
    "delta-bar-delta": {"momentum": 0.5, "lr": 0.3, "beta": 0.1},  # momentum switched on
    "delta-bar-delta-momentum-decay": {"min_gain": 0.9, "max_gain": 1.1, "momentum": 0.2},
    "adamax-decay": {"betas": (0.5, 0.6), "eps": 0.3, "maximize": True},
    "adadelta-decay": {"rho": 0.5, "eps": 0.3, "lr": 1},
    "radam-decay": {"betas": (0.5, 0.6), "decoupled_weight_decay": True},
    "nadam-decay": {"betas": (0.5, 0.6), "momentum_decay": 0.7, "decoupled_weight_decay": True},
    "asgd-averages-decay": {"lr": 0.3, "lambd": 1.0, "alpha": 2, "t0": 2, "maximize": True},
    "lion-decay": {"betas": (0.5, 0.6), "maximize": True, "weight_decay": 0.9},
    "rprop": {"etas": (0.25, 3.0), "step_sizes": (0.1, 0.2), "maximize": True},
    "lars-decay": {"momentum": 0.5, "nesterov": True, "trust_coefficient": 0.1},
    "lars-no-momentum": {"momentum": 0.5, "lr": 0.3},  # momentum switched on
    "swats-decay": {"betas": (0.5, 0.6), "lr": 0.3, "eps": 4.0},  # made to switch
    "swats-switch-decay": {"betas": (0.9, 0.6), "lr": 0.3, "weight_decay": 0.4},
}
CHANGES |= {  # of a class that is not among them, what every class has
    str(case): {"lr": 0.3, "weight_decay": 0.4, "maximize": True}
    for case in ONE_OF_EACH
    if case.cls not in {BY_NAME[name].cls for name in CHANGES}
}


@pytest.mark.parametrize("name", CHANGES)
def test_hyper_parameters_changed_between_steps(name: str) -> None:
    pair = Pair(BY_NAME[name])
    pair.step(0)
    pair.step(1)
    for opt, _ in pair:
        opt.param_groups[0].update(CHANGES[name])
    pair.step(2)
    pair.step(3)
    # Where the GPU is the CPU, all tensors are the GPU's, and betas that lie there are torch's affair.
    on_gpu = gpu.ON_CPU and isinstance(CHANGES[name].get("betas", (0,))[0], Tensor)
    assert {e.path for e in pair.ours.explain()} == {"torch" if on_gpu else "fused"}


@each_class
@pytest.mark.parametrize("shape", [(), (1,)])
def test_lr_as_a_tensor_changed_in_place(case: Case, shape: tuple[int, ...]) -> None:
    a, b = make_params(), make_params()
    lr = torch.full(shape, 0.5)
    ours, other = case.make(a, lr=lr), case.make(b, lr=0.5)
    for i in range(3):
        set_grads(a, i)
        set_grads(b, i)
        ours.step()
        other.step()
        assert all(map(torch.equal, a, b))
        other.param_groups[0]["lr"] = lr.mul_(0.5).item()
    assert ours.param_groups[0]["lr"] is lr


@each_class
def test_groups_with_their_own_options(case: Case) -> None:
    pair = Pair(case, [(4,)])
    pair.step(0)
    for opt, params in pair:
        params += make_params([(6,), (2, 3)])
        opt.add_param_group({"params": params[1:], "lr": 0.3, "weight_decay": 0.4})
        set_grads(params, 1)
    try:
        pair.theirs.step()
    except KeyError:  # PyTorch 2.11's Adagrad has no state for a group that comes later
        with pytest.raises(KeyError, match="sum"):
            pair.ours.step()
        return
    pair.ours.step()
    pair.compare()
    for i in range(2, 4):
        pair.step(i)
    assert [e.group for e in pair.ours.explain()] == [0, 1, 1]


@each_class
def test_named_parameters(case: Case) -> None:
    opt = case.make(nn.Linear(3, 2).named_parameters())
    assert [e.name for e in opt.explain()] == ["weight", "bias"]


@each_class
@pytest.mark.parametrize("outer", [torch.no_grad, torch.enable_grad])
def test_closure_has_gradients_enabled_and_its_loss_is_returned(case: Case, outer: Any) -> None:
    pair = Pair(case)
    for _ in range(2):
        losses = []
        for opt, params in pair:

            def closure(opt: Optimizer = opt, params: list[Tensor] = params) -> Tensor:
                assert torch.is_grad_enabled()
                opt.zero_grad()
                loss = sum((p**2).sum() for p in params)
                loss.backward()
                return loss

            with outer():
                losses.append(opt.step(closure))
        torch.testing.assert_close(*losses)
        assert losses[0].requires_grad
        pair.compare()
    assert pair.ours.step() is None


PATHS = "fused", "torch", "mixed", "native"


def on_path(path: str, cls: type[Optimizer] = fusedopt.AdamW, **kwargs: Any) -> Optimizer:
    """An optimizer whose next step takes this path."""
    dtypes = {"torch": (torch.complex64,), "mixed": (torch.complex64, torch.float32)}.get(path, (torch.float32,))
    params = make_params(dtypes=dtypes)
    set_grads(params, 0)
    return cls(params, **kwargs)


def paths(opt: Any) -> set[str]:
    return {e.path for e in opt.explain()}


class OwnStep(fusedopt.AdamW):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("cls", [fusedopt.AdamW, OwnStep])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("with_closure", [False, True])
def test_hooks_run_once(path: str, cls: type[Optimizer], with_closure: bool) -> None:
    torch.optim.AdamW(make_params())  # patches the step of torch's class to run hooks
    events: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: events.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: events.append("global post")),
    ]
    try:
        opt = on_path(path, cls)
        opt.register_step_pre_hook(lambda *_: events.append("pre"))
        opt.register_step_post_hook(lambda *_: events.append("post"))
        closure = (lambda: events.append("closure") or 7) if with_closure else None
        for _ in range(2):
            if path == "native":
                with fusedopt.native():
                    result = opt.step(closure)
            else:
                result = opt.step(closure)
            inside = ["closure"] if with_closure else []
            assert events == ["global pre", "pre", *inside, "post", "global post"]
            assert result == (7 if with_closure else None)
            events.clear()
    finally:
        for handle in handles:
            handle.remove()
    assert paths(opt) == ({"fused", "torch"} if path == "mixed" else {"torch" if path == "native" else path})
    assert all(opt.state[p]["step"] == 2 for p in opt.param_groups[0]["params"])


@each_class
def test_hooks_of_every_class(case: Case) -> None:
    opt = case.make(make_params())
    events: list[str] = []
    pre = opt.register_step_pre_hook(lambda *_: events.append("pre"))
    opt.register_step_post_hook(lambda *_: events.append("post"))
    opt.step()
    assert events == ["pre", "post"]
    pre.remove()
    opt.step()
    assert events == ["pre", "post", "post"]


@pytest.mark.parametrize("call", ["step()", "step(f)", "step(closure=f)"])
def test_hooks_see_the_arguments_that_torchs_would(call: str) -> None:
    seen = []
    for module in torch.optim, fusedopt:
        opt = on_path("fused", module.AdamW)
        opt.register_step_pre_hook(lambda opt, args, kwargs: seen.append(("pre", args[1:], kwargs)))
        opt.register_step_post_hook(lambda opt, args, kwargs: seen.append(("post", args[1:], kwargs)))
        eval(f"opt.{call}", {"opt": opt, "f": int})
    assert seen[:2] == seen[2:]


@pytest.mark.parametrize("path", PATHS[:3])
def test_hook_replaces_the_arguments(path: str) -> None:
    opt = on_path(path)
    opt.register_step_pre_hook(lambda opt, args, kwargs: ((opt, lambda: "other"), {}))
    assert opt.step(lambda: "original") == "other"


def test_hook_with_a_wrong_result_is_refused() -> None:
    opt = on_path("fused")
    opt.register_step_pre_hook(lambda *_: "neither None nor a tuple")
    before = [p.detach().clone() for p in opt.param_groups[0]["params"]]
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        opt.step()
    assert all(map(torch.equal, before, opt.param_groups[0]["params"]))


@pytest.mark.parametrize("cls", [fusedopt.AdamW, OwnStep])
@pytest.mark.parametrize("path", PATHS[:3])
def test_profiler_label(path: str, cls: type[Optimizer]) -> None:
    opt = on_path(path, cls)
    with torch.profiler.profile() as profile:
        opt.step()
    on_host = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CPU]
    labels = [event.name for event in on_host if event.name.startswith("Optimizer.step")]
    assert labels == [f"Optimizer.step#{cls.__name__}.step"]
