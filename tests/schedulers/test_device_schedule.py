"""Schedules on the device."""

import copy

import pytest
import torch
from schedule_runs import sgd
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, OneCycleLR, ReduceLROnPlateau
from torch.utils._python_dispatch import TorchDispatchMode

import fusedopt
from fusedopt.schedulers import HalvingLR, InverseDecayLR, WarmupLR, on_device, simulate

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
by_device = pytest.mark.parametrize("device", DEVICES)
by_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)

SCHEDULES = {
    "warmup-inverse": lambda o: WarmupLR(o, 4, after=InverseDecayLR(o, 0.1)),
    "cosine": lambda o: CosineAnnealingLR(o, 9),
    "one-cycle": lambda o: OneCycleLR(o, 0.3, 20, cycle_momentum=False),
}


@by_device
@by_dtype
@pytest.mark.parametrize("name", SCHEDULES)
def test_equals_the_host_schedule_rounded(device, dtype, name):
    host = simulate(SCHEDULES[name](sgd(0.1, 0.03)), 20).lr.to(dtype)
    optimizer = sgd(0.1, 0.03)
    schedule = on_device(SCHEDULES[name](optimizer), 20, dtype=dtype, device=device)
    groups = optimizer.param_groups
    tensors = [group["lr"] for group in groups]
    for step in range(24):
        expected = host[min(step, 19)]  # beyond the end the last one stays
        assert [group["lr"].item() for group in groups] == expected.tolist()
        assert [group["lr"] for group in groups] == tensors
        assert all(lr.dtype == dtype and lr.device.type == device and lr.dim() == 0 for lr in tensors)
        schedule.step()
    assert all(group["lr"] is lr for group, lr in zip(groups, tensors, strict=True))


def test_float64_and_the_parameters_device_by_default():
    schedule = on_device(HalvingLR(sgd(0.1)), 3)
    assert schedule.lrs[0].dtype == torch.float64
    assert schedule.lrs[0].device.type == "cpu"


class NoHostReads(TorchDispatchMode):
    """Refuses what brings a value from the device to the host, or from the host to the device."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(func.name())
        assert "_local_scalar_dense" not in func.name()
        assert "_to_copy" not in func.name()
        return func(*args, **(kwargs or {}))


def test_a_step_is_three_operations_and_reads_nothing_on_the_host():
    schedule = on_device(HalvingLR(sgd(0.1, 0.2, 0.3)), 5)
    with NoHostReads() as mode:
        schedule.step()
    assert mode.calls == ["aten::add_.Tensor", "aten::clamp_", "aten::index_select.out"]


@by_device
def test_an_optimizer_follows(device):
    def train(put):
        p = torch.linspace(-1, 1, 7, device=device, dtype=torch.float64).requires_grad_()
        optimizer = torch.optim.Adam([p], lr=0.1) if device == "cuda" else fusedopt.Adam([p], lr=0.1)
        optimizer.param_groups[0]["capturable"] = device == "cuda"
        schedule = put(CosineAnnealingLR(optimizer, 9))
        for _ in range(9):
            p.grad = p.detach() + 0.3
            optimizer.step()
            schedule.step()
        return p.detach()

    torch.testing.assert_close(train(lambda s: on_device(s, 10)), train(lambda s: s), rtol=1e-12, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_captured_step_follows():
    p = torch.zeros(3, device="cuda", requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = torch.optim.Adam([p], lr=0.1, capturable=True)
    schedule = on_device(InverseDecayLR(optimizer, 0.5), 10)
    lr, (used,) = torch.zeros((), device="cuda", dtype=torch.float64), schedule.lrs
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        optimizer.step()  # makes the state
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lr.copy_(used)
        optimizer.step()
        schedule.step()
    for step in range(12):
        graph.replay()
        assert lr.item() == 0.1 / (1 + 0.5 * min(step, 9))


@by_device
def test_resumes(device):
    def make():
        optimizer = sgd(0.1, 0.03)
        return optimizer, on_device(InverseDecayLR(optimizer, 0.1), 10, device=device)

    optimizer, schedule = make()
    for _ in range(4):
        schedule.step()
    state, optimizer_state = schedule.state_dict(), copy.deepcopy(optimizer.state_dict())
    assert state == {"step": 4}
    for order in (0, 1):
        other, resumed = make()
        if order:
            resumed.load_state_dict(state)
        other.load_state_dict(optimizer_state)
        with pytest.raises(RuntimeError, match="call this schedule's load_state_dict"):
            resumed.step()
        resumed.load_state_dict(state)
        for step in range(4, 9):
            assert [group["lr"].item() for group in other.param_groups] == [
                0.1 / (1 + 0.1 * step),
                0.03 / (1 + 0.1 * step),
            ]
            resumed.step()
    with pytest.raises(ValueError, match="step 10 is not one of this schedule's 10"):
        resumed.load_state_dict({"step": 10})


def test_refuses_what_a_captured_step_cannot_follow():
    for make in (lambda o: OneCycleLR(o, 0.3, 20), lambda o: CyclicLR(o, 0.01, 0.1, 3)):
        optimizer = sgd(0.1)
        schedule = make(optimizer)
        with pytest.raises(ValueError, match=r"changes the momentum, .*cycle_momentum=False"):
            on_device(schedule, 10)
        assert isinstance(optimizer.param_groups[0]["lr"], float)
    with pytest.raises(ValueError, match="needs a metric"):
        on_device(ReduceLROnPlateau(sgd(0.1)), 10)
