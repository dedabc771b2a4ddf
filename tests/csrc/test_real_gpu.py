"""What the executor cannot show: real streams, graphs of whole training steps, synchronisation, memory, compilation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gpu
import pytest
import torch
from cases import BY_NAME, Case
from gpu_problem import assert_equal, each_case, make_params, set_grads
from pair import counts_steps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import fusedopt
from fusedopt.models import LeNet

assert gpu.REAL, "conftest.py leaves this file out elsewhere"

several_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def gpu_copy(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


# ---- No synchronisation ----


def test_the_debug_mode_sees_a_synchronisation() -> None:
    value = torch.ones((), device="cuda")
    with gpu.no_synchronisation(), pytest.raises(RuntimeError, match="synchron"):
        value.item()


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("clip", [None, 1.0])
@each_case
def test_a_warm_step_does_not_synchronise(case: Case, clip: float | None, capturable: bool) -> None:
    params = make_params()
    ours = case.make(params, max_grad_norm=clip, capturable=capturable)
    for i in range(3):
        set_grads(params, i)
        ours.step()
    fresh = [torch.ones_like(p) for p in params]
    with gpu.no_synchronisation():
        ours.step()
        for p, grad in zip(params, fresh, strict=True):
            p.grad = grad  # at other addresses
        ours.step()
    assert {e.path for e in ours.explain()} == {"fused"}


@pytest.mark.parametrize("clip", [None, 1.0])
@each_case
def test_a_warm_step_of_grad_scaler_does_not_synchronise(case: Case, clip: float | None) -> None:
    """Under fused=True, torch's GradScaler leaves the decision to the optimizer, and ours leaves it to the kernel."""
    params = make_params()
    ours = case.make(params, max_grad_norm=clip, fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=8.0)
    scaler.scale(torch.ones((), device="cuda"))
    for i in range(3):
        set_grads(params, i, scale=8.0)
        scaler.step(ours)
        scaler.update()
    set_grads(params, 3, scale=8.0)
    with gpu.no_synchronisation():
        scaler.step(ours)


# ---- A whole training step ----


class Training:
    """A LeNet on one batch, with the loss of each step. In float64: convolutions on a GPU are not the same every time,
    and rules that divide by a gradient's size make much of a little.
    """

    def __init__(self, case: Case, **options: Any) -> None:
        torch.manual_seed(1)
        self.model = LeNet(1, 10).cuda().double()
        self.optimizer = case.make(self.model.parameters(), **options)
        self.images = torch.randn(16, 1, 28, 28, device="cuda", dtype=torch.float64)
        self.labels = torch.randint(10, (16,), device="cuda")
        self.loss = torch.zeros((), device="cuda", dtype=torch.float64)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.loss.copy_(loss.detach())


def captured(step: Callable[[], None], warm: int = 3) -> torch.cuda.CUDAGraph:
    """As torch's documentation has it: some steps on a side stream, then the capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


@pytest.mark.parametrize("clip", [None, 0.5])
@each_case
def test_a_whole_training_step_in_a_graph(case: Case, clip: float | None) -> None:
    """The activations of a captured forward lie in the graph's memory, which every replay overwrites.

    What the captured step reads must not lie there.
    """
    eager, replayed = (Training(case, max_grad_norm=clip, capturable=True, lr=1e-3) for _ in range(2))
    graph = captured(replayed.step)
    for _ in range(3):
        eager.step()
    for _ in range(10):
        junk = [torch.full((1 << 20,), 7.0, device="cuda") for _ in range(4)]  # other work on the card
        graph.replay()
        eager.step()
        del junk
        torch.testing.assert_close(replayed.loss, eager.loss, rtol=1e-4, atol=1e-6)
    for p, q in zip(replayed.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
    steps = {float(state["step"]) for state in replayed.optimizer.state.values() if "step" in state}
    assert steps == {13.0} or not (steps or counts_steps(case))


def test_a_graph_after_another_graph_of_the_same_pool() -> None:
    """The second capture may reuse memory of the first one's pool; both optimizers go on."""
    trainings = [Training(BY_NAME["adamw"], capturable=True, lr=1e-3) for _ in range(2)]
    eager = Training(BY_NAME["adamw"], capturable=True, lr=1e-3)
    graphs = []
    pool = torch.cuda.graph_pool_handle()
    for training in trainings:
        for _ in range(3):
            training.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            training.step()
        graphs.append(graph)
    for _ in range(3):
        eager.step()
    for _ in range(5):
        for graph in graphs:
            graph.replay()
        eager.step()
    for training in trainings:
        torch.testing.assert_close(training.loss, eager.loss, rtol=1e-4, atol=1e-6)


def test_a_training_step_with_autocast_and_grad_scaler() -> None:
    """The real flow, with an overflow on the way: the step is left out, the scale halved, the loss falls after all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3)).cuda()
    ours = fusedopt.AdamW(model.parameters(), lr=1e-2, max_grad_norm=1.0, fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**14, growth_interval=1000)
    inputs = torch.randn(128, 20, device="cuda")
    labels = inputs[:, :3].argmax(dim=1)
    losses = []
    for i in range(40):
        ours.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.float16):
            loss = F.cross_entropy(model(inputs), labels)
        scaler.scale(loss).backward()
        before = gpu_copy(list(model.parameters()))
        if i == 5:
            model[0].weight.grad.view(-1)[0] = torch.inf
        scaler.step(ours)
        scaler.update()
        same = all(map(torch.equal, before, model.parameters()))
        assert same == (i == 5)
        losses.append(loss.item())
    assert scaler.get_scale() == 2.0**13
    assert losses[-1] < 0.5 * losses[0]
    assert {float(state["step"]) for state in ours.state.values()} == {39.0}


def test_a_compiled_model_and_training_step() -> None:
    pytest.importorskip("triton")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3)).cuda()
    other = copy.deepcopy(model)
    x, y = torch.randn(64, 20, device="cuda"), torch.randint(3, (64,), device="cuda")
    ours, theirs = fusedopt.AdamW(model.parameters()), torch.optim.AdamW(other.parameters(), fused=True)

    def train(model: nn.Module, optimizer: Optimizer) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    compiled = torch.compile(train)
    for _ in range(4):
        compiled(model, ours)
        train(other, theirs)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    assert {e.path for e in ours.explain()} == {"fused"}


# ---- Streams and devices ----


def test_a_step_on_a_busy_side_stream_waits_for_its_gradients() -> None:
    """Backward and step on a stream that is late: the step follows in its order, the default stream does not matter."""
    params, twins = make_params(), make_params()
    ours, theirs = (fusedopt.AdamW(p, lr=0.1) for p in (params, twins))
    for i in range(4):
        set_grads(twins, i)
        theirs.step()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)
            set_grads(params, i)
            ours.step()
        torch.cuda.current_stream().wait_stream(side)
    assert_equal(ours, theirs)


@several_gpus
@pytest.mark.parametrize("clip", [None, 0.5])
@each_case
def test_several_gpus_in_one_optimizer(case: Case, clip: float | None) -> None:
    params, twins = make_params(), make_params()
    spread = [p.detach().to(f"cuda:{i % 2}").requires_grad_() for i, p in enumerate(params)]
    ours, theirs = case.make(spread, max_grad_norm=clip), case.make(twins, max_grad_norm=clip)
    for i in range(3):
        set_grads(spread, i)
        set_grads(twins, i)
        ours.step()
        theirs.step()
    for p, q in zip(spread, twins, strict=True):
        torch.testing.assert_close(p.to(q.device), q)
    assert torch.cuda.current_device() == 0


@several_gpus
def test_parameters_on_a_gpu_that_is_not_the_current_one() -> None:
    params, twins = make_params(), make_params()
    away = [p.detach().to("cuda:1").requires_grad_() for p in params]
    ours, theirs = fusedopt.AdamW(away), fusedopt.AdamW(twins)
    set_grads(away, 0)
    set_grads(twins, 0)
    ours.step()
    theirs.step()
    for p, q in zip(away, twins, strict=True):
        assert torch.equal(p.to(q.device), q)


# ---- The CPU, and sizes ----


@each_case
def test_the_cpu_and_the_gpu_agree(case: Case) -> None:
    """The same arithmetic on both; only the order of sums and the fused multiply-adds of old CPUs differ."""
    there = make_params()
    here = [p.detach().cpu().requires_grad_() for p in there]
    ours, theirs = case.make(there, max_grad_norm=0.5), case.make(here, max_grad_norm=0.5)
    for i in range(6):
        set_grads(there, i)
        set_grads(here, i)
        ours.step()
        theirs.step()
    for p, q in zip(there, here, strict=True):
        torch.testing.assert_close(p.cpu(), q, rtol=1e-5, atol=1e-6)
        for name in case.states:
            torch.testing.assert_close(ours.state[p][name].cpu(), theirs.state[q][name], rtol=1e-5, atol=1e-6)


def test_more_elements_than_32_bits_count() -> None:
    numel = 2**31 + 12_345
    needed = 2 * 2 * numel
    if torch.cuda.mem_get_info()[0] < 2 * needed:
        pytest.skip(f"needs {2 * needed / 2**30:.0f} GiB of free GPU memory")
    p = torch.ones(numel, dtype=torch.bfloat16, device="cuda").requires_grad_()
    p.grad = torch.ones_like(p)
    ours = fusedopt.SGD([p], lr=0.5, max_grad_norm=1e9)
    ours.step()
    assert ours.explain()[0].path == "fused"
    assert ours.grad_norm.item() == pytest.approx(numel**0.5, rel=1e-6)
    with torch.no_grad():
        for begin in range(0, numel, 2**28):
            assert bool((p[begin : begin + 2**28] == 0.5).all())
