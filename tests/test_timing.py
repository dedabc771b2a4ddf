"""The timer."""

import pytest
import torch

from fusedopt.training.timing import interleaved, machine, time_steps

pytestmark = pytest.mark.usefixtures("one_thread")


def test_interleaved_takes_turns_and_counts():
    order = []
    timings = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=4, warmup=2)
    assert "".join(order) == "abba" * 3
    assert set(timings) == {"a", "b"}
    for timing in timings.values():
        assert 0 < timing.quartiles[0] <= timing.median <= timing.quartiles[1]


def test_interleaved_tells_slow_from_fast():
    slow = torch.rand(400, 400)
    timings = interleaved({"fast": lambda: None, "slow": lambda: slow @ slow}, rounds=5, warmup=1)
    assert timings["slow"].median > 5 * timings["fast"].median


def test_interleaved_needs_two_rounds():
    with pytest.raises(ValueError, match="at least 2 rounds, not 1"):
        interleaved({}, rounds=1)


def test_time_steps_leaves_the_model_alone():
    model = torch.nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    before = [(p.detach().clone(), p.grad.clone()) for p in model.parameters()]
    moved = []

    def make(params):
        moved.append((params, [p.detach().clone() for p in params]))
        return torch.optim.SGD(params, lr=1.0)

    assert set(time_steps(model, {"sgd": make}, rounds=3)) == {"sgd"}
    for p, (value, gradient) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, value)
        assert torch.equal(p.grad, gradient)
    ((after, start),) = moved
    assert all(not torch.equal(p, value) for p, value in zip(after, start, strict=True))  # it did take steps


def test_time_steps_needs_gradients():
    with pytest.raises(ValueError, match="no gradient in weight, bias"):
        time_steps(torch.nn.Linear(3, 2), {})


def test_machine_names_threads_and_version():
    assert f"{torch.get_num_threads()} thread(s), PyTorch {torch.__version__}" in machine()
