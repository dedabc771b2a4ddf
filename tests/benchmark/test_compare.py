"""`fusedopt.compare`: nothing given changes, and what it says is true. Nothing here asserts on a time."""

import pytest
import torch
from torch import nn

import fusedopt
from fusedopt.benchmark import measuring
from fusedopt.benchmark.candidates import named, of_optimizer
from fusedopt.benchmark.devices import DEVICES, Host, Work
from fusedopt.benchmark.implementations import CASES, NATIVE, OURS
from fusedopt.benchmark.subjects import of_model
from fusedopt.benchmark.training import time_training

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """A copy at 10 GB/s, a machine that nobody else uses, no other packages."""
    monkeypatch.setattr(measuring, "copy_bandwidth", lambda meter: 1e10)
    monkeypatch.setattr("fusedopt.benchmark.comparing.OtherWork.cores", lambda self: 0.0)
    monkeypatch.setattr("fusedopt.benchmark.rivals.importlib.util.find_spec", lambda package: None)


def network():
    return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def snapshot(model, optimizer):
    """Everything that could have changed, as text: exact, and NaN equals NaN."""
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    return (
        [None if t is None else t.tolist() for t in tensors],
        [(p.requires_grad, id(p.grad)) for p in model.parameters()],
        repr(optimizer.state_dict()),
        [list(group) for group in optimizer.param_groups],
        model.training,
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
    )


@pytest.mark.parametrize("library", [torch.optim, fusedopt], ids=["torch", "fusedopt"])
def test_an_optimizer_at_hand_is_not_changed(library):
    model = network().eval()
    slow, fast = list(model.parameters())[:2], list(model.parameters())[2:]
    groups = [{"params": slow, "lr": 0.5, "weight_decay": 0.25}, {"params": fast, "betas": (0.5, 0.75)}]
    optimizer = library.AdamW(groups, lr=0.125, amsgrad=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step(), schedule.step()
    fast[-1].grad = None
    before = snapshot(model, optimizer)
    comparison = fusedopt.compare(optimizer, seconds=0)
    assert snapshot(model, optimizer) == before
    assert [row.implementation for row in comparison.rows] == [OURS, *NATIVE]
    assert (comparison.tensors, comparison.elements) == (5, sum(p.numel() for p in [*slow, *fast[:-1]]))
    assert {row.optimizer for row in comparison.rows} == {"AdamW"}


def test_a_model_is_not_changed_by_training_steps():
    model = network()
    optimizer = torch.optim.SGD(model.parameters())
    before = snapshot(model, optimizer)
    comparison = fusedopt.compare(model, ["SGD"], batch=4, input_shape=(6,), seconds=60)
    assert snapshot(model, optimizer) == before
    for row in comparison.rows:
        assert row.training.share == row.training.step.median / row.training.seconds.median
    assert comparison.left_out == ()


def made(optimizer):
    """Each implementation of it, with the parameters it steps."""
    subject, candidates = of_optimizer(optimizer)
    parameters = subject.drawn(None, CPU)
    return {name: make(parameters) for name, make in candidates.factories.items()}


@pytest.mark.parametrize("installed", [False, True])
def test_implementations_are_what_they_are_called(installed):
    p, q = (nn.Parameter(torch.ones(3)) for _ in range(2))
    at_hand = torch.optim.SGD([{"params": [p], "weight_decay": 0.5}, {"params": [q]}], lr=3.0, momentum=0.9, fused=True)
    if installed:
        fusedopt.install()
    try:
        found = made(at_hand)
    finally:
        fusedopt.uninstall()
    assert {name: type(each) for name, each in found.items()} == {
        OURS: fusedopt.SGD,
        **dict.fromkeys(NATIVE, torch.optim.SGD),
    }
    flags = {name: (each.param_groups[0]["foreach"], each.param_groups[0]["fused"]) for name, each in found.items()}
    assert flags == {OURS: (None, True), "for-loop": (False, False), "foreach": (True, False), "fused": (False, True)}
    for each in found.values():
        assert [group["weight_decay"] for group in each.param_groups] == [0.5, 0]
        assert [group["momentum"] for group in each.param_groups] == [0.9, 0.9]
        assert [group["lr"] for group in each.param_groups] == [1e-6, 1e-6]


def test_named_implementations_are_torchs_own_while_installed():
    with fusedopt.installed():
        found = {name: make([nn.Parameter(torch.ones(2))]) for name, make in named("adamw").factories.items()}
    assert [type(each) for each in found.values()] == [fusedopt.AdamW, *[torch.optim.AdamW] * 3]


def test_clipping_is_part_of_every_implementation():
    p = nn.Parameter(torch.ones(4))
    optimizers = made(fusedopt.SGD([p], lr=1.0, max_grad_norm=0.5))
    for name, optimizer in optimizers.items():
        (copy,) = optimizer.param_groups[0]["params"]
        copy.data.zero_()
        copy.grad = torch.ones(4)
        optimizer.step()
        assert copy.norm().item() == pytest.approx(0.5e-6, rel=1e-4), name


@pytest.mark.parametrize("cls", [fusedopt.LAMB, fusedopt.SWATS, fusedopt.DeltaBarDelta])
def test_ours_that_torch_has_not(cls):
    ours, plain = made(cls([nn.Parameter(torch.ones(4))], lr=0.1)).values()
    ours.step(), plain.step()
    assert type(ours) is cls
    assert [each.path for each in ours.explain()] == ["fused"]
    assert [each.path for each in plain.explain()] == ["torch"]


def test_torchs_that_we_have_not():
    without = next(cls for cls in (torch.optim.Adadelta, torch.optim.LBFGS) if not hasattr(fusedopt, cls.__name__))
    assert OURS not in made(without([nn.Parameter(torch.ones(4))]))


def test_gradients_that_are_used_again_stay_finite():
    """Without weight decay torch's foreach Nesterov adds to the gradients in place."""
    comparison = fusedopt.compare(
        torch.optim.SGD([nn.Parameter(torch.ones(9))], momentum=0.9, nesterov=True), seconds=0
    )
    assert len(comparison.rows) == 4
    subject, candidates = of_optimizer(torch.optim.SGD([nn.Parameter(torch.ones(9))], momentum=0.9, nesterov=True))
    assert candidates.still
    parameters = subject.drawn(None, CPU)
    measurements = measuring.Measurements(subject, parameters, Host(), None)
    measurements.steps(candidates)
    assert not parameters[0].grad.any()


def test_bytes_of_traffic_and_state():
    rows = {row.implementation: row for row in fusedopt.compare([(10, 10), (28,)], ["AdamW"], seconds=0).rows}
    counts = 2 * 4  # a float32 step of each tensor
    for row in rows.values():
        assert row.step_bytes == 7 * 4 * 128
        assert row.state_bytes == 2 * 4 * 128 + counts
        assert row.copy_share == row.step_bytes / row.seconds.median / 1e10
        assert row.launches is None
    assert rows["fused"].ratio is not None
    halves = fusedopt.compare([(128,)], ["SGD"], implementations=["for-loop"], dtype=torch.bfloat16, seconds=0)
    (row,) = halves.rows
    assert (row.step_bytes, row.state_bytes) == (CASES["SGD"].accesses * 2 * 128, 0)
    assert halves.dtypes == ("bfloat16",)


def test_launches_are_those_of_one_step(monkeypatch):
    steps = []

    class Gpu(Host):
        def work(self, run):
            run()
            steps.append(run)
            return Work(kernels=len(steps), copies=9, memsets=9, kernel_seconds=1.0)

    monkeypatch.setitem(DEVICES, "cpu", Gpu)
    comparison = fusedopt.compare([(8,)], ["SGD"], seconds=0)
    assert [row.launches for row in comparison.rows] == [1, 2, 3, 4]
    assert "launches" in str(comparison)


def test_what_does_not_work_is_left_out_with_its_reason(monkeypatch):
    def broken(parameters):
        raise RuntimeError("needs a GPU\nand more lines")

    monkeypatch.setattr("fusedopt.benchmark.candidates.rivals", lambda case: {"apex": broken})
    comparison = fusedopt.compare([(8,)], ["SGD"], seconds=0)
    assert comparison.left_out == ("SGD in apex: needs a GPU",)
    assert "Left out: SGD in apex: needs a GPU" in str(comparison)
    assert OURS in [row.implementation for row in comparison.rows]


def test_options_that_one_of_torchs_refuses():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(4))], lr=torch.tensor(0.5))
    comparison = fusedopt.compare(optimizer, seconds=0)
    assert [row.implementation for row in comparison.rows] == [OURS, "for-loop", "fused"]
    assert comparison.left_out[0].startswith("AdamW in foreach: lr as a Tensor is not supported")
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_without_time_for_all_the_first_are_trained():
    model = nn.Linear(4, 2)
    factories = named("SGD").factories
    taken = time_training(of_model(model), factories, 3, torch.ones(3, 4), None, CPU, 0.0, [OURS, "fused"])
    assert list(taken) == [OURS, "fused"]
    comparison = fusedopt.compare(model, ["SGD"], inputs=torch.ones(5, 4), seconds=0)
    assert comparison.batch == 5
    ours, native = [row.implementation for row in comparison.rows if row.training is not None]
    assert ours == OURS
    assert native in NATIVE
    assert comparison.left_out[0].startswith("training with SGD in ")


def test_outputs_of_any_kind_are_trained_on():
    class Odd(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x), "more": (x, [super().forward(x)], "text")}

    assert fusedopt.compare(Odd(2, 2), ["SGD"], implementations=[OURS], inputs=torch.ones(1, 2), seconds=0).rows


class Strange(torch.optim.AdamW): ...


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda p: fusedopt.compare(Strange([p])),
            TypeError,
            r"does not know how to make another .*test_compare.Strange",
        ),
        (lambda p: fusedopt.compare(torch.optim.SGD([p]), ["AdamW"]), ValueError, "compared with itself"),
        (lambda p: fusedopt.compare(nn.Linear(2, 2), ["Adams"]), ValueError, "unknown optimizer 'Adams'; choose among"),
        (lambda p: fusedopt.compare(nn.ReLU()), ValueError, "ReLU has no parameter that requires a gradient"),
        (
            lambda p: fusedopt.compare(nn.Linear(2, 2), ["SGD"], inputs=torch.ones(1, 3), seconds=0),
            ValueError,
            r"Linear cannot be trained on inputs of shape \(1, 3\): .*mat1",
        ),
        (lambda p: fusedopt.compare([]), ValueError, "there are no shapes"),
        (lambda p: fusedopt.compare([3]), ValueError, r"such as \(64, 3, 7, 7\), not 3"),
        (lambda p: fusedopt.compare([(3,)], batch=2), ValueError, "a whole training step needs a model"),
        (lambda p: fusedopt.compare([(3,)], device="meta"), ValueError, "on cuda and cpu, not on meta"),
        (
            lambda p: fusedopt.compare([(3,)], implementations=["x"]),
            ValueError,
            "no implementation 'x' here, only fused",
        ),
        (
            lambda p: fusedopt.compare(nn.Linear(2, 2), ["SGD"], batch=2, seconds=0),
            ValueError,
            "what Linear takes is not known",
        ),
        (
            lambda p: fusedopt.compare(torch.optim.SGD([torch.zeros(2)])),
            ValueError,
            "no parameter that requires a gradient",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call(nn.Parameter(torch.ones(2)))
