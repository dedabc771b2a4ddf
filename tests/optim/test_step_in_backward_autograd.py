"""Steps within backward passes of every kind: graphs of gradients, checkpoints, compiled models, and threads."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
from backward_steps import Net, adam, assert_equal, assert_same, backward, pair, train
from torch.utils.checkpoint import checkpoint

from fusedopt import native, step_in_backward

# Without the pretended GPU, which is not seen where autograd runs hooks: a build for the executor steps on its kernels.
pytestmark = [pytest.mark.steps, pytest.mark.usefixtures("one_thread"), pytest.mark.below_python]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_gradient_that_is_differentiated_again_waits() -> None:
    model, optimizer, other, its = pair(adam)
    step_in_backward(optimizer)
    for net, its_optimizer in ((model, optimizer), (other, its)):
        backward(net, 0, create_graph=True)
        weight = net.layers[1].weight
        assert weight.grad is not None
        penalty = weight.grad.square().sum()
        penalty.backward()
        assert (weight.grad is None) == (net is model)
        its_optimizer.step()
        for p in net.parameters():
            p.grad = None  # autograd's cycle
    assert_same(model, optimizer, other, its)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant: bool) -> None:
    model, optimizer, other, its = pair(adam)
    steps = step_in_backward(optimizer)
    x = torch.ones(4, 8, requires_grad=True)
    if reentrant:  # the first layer is in two segments, and neither has the whole gradient
        before = copy.deepcopy(model.state_dict())
        segments = checkpoint(model, checkpoint(model, x, use_reentrant=True), use_reentrant=True)
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            segments.sum().backward()
        assert_equal(model.state_dict(), before)
        steps.remove()
        return
    for net, its_optimizer in ((model, optimizer), (other, its)):
        checkpoint(net, checkpoint(net, x, use_reentrant=False), use_reentrant=False).sum().backward()
        its_optimizer.step()
    assert_same(model, optimizer, other, its)


def test_compiled_models() -> None:
    model, optimizer, other, its = pair(adam)
    step_in_backward(optimizer)
    for net, its_optimizer in ((model, optimizer), (other, its)):
        compiled = torch.compile(net, backend="aot_eager")
        for _ in range(3):
            its_optimizer.zero_grad()
            compiled(torch.ones(4, 8)).square().sum().backward()
            assert (net.layers[0].weight.grad is None) == (net is model)
            its_optimizer.step()
    assert_same(model, optimizer, other, its)


def test_torchs_path_is_followed_and_explained() -> None:
    model, optimizer, other, its = pair(adam)
    step_in_backward(optimizer)
    with native():
        backward(model, 1)
        optimizer.step()
        backward(other, 1)
        its.step()
    assert_same(model, optimizer, other, its)
    assert [e.path for e in optimizer.explain()] == ["torch"] * 4
    assert "native" in optimizer.explain()[0].reason


def test_threads_that_run_backward_passes_of_their_own() -> None:
    models = [Net() for _ in range(4)]
    expected = [copy.deepcopy(model) for model in models]
    optimizer = adam([p for model in models for p in model.parameters()])
    its = adam([p for model in expected for p in model.parameters()])
    step_in_backward(optimizer)

    def run(k: int) -> None:
        for step in range(20):
            backward(models[k], step + k)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for step in range(20):
        its.zero_grad()
        for k, model in enumerate(expected):
            backward(model, step + k)
        its.step()
    for model, other in zip(models, expected, strict=True):
        assert_same(model, optimizer, other, its)


def test_a_pass_waits_for_the_step_of_another_thread() -> None:
    model = Net()
    optimizer = adam(model.parameters())
    step_in_backward(optimizer)
    backward(model, 0)
    before = copy.deepcopy(model.state_dict())
    with optimizer._turn:  # type: ignore[union-attr]  # as step() has it
        thread = threading.Thread(target=backward, args=(model, 2))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert_equal(model.state_dict(), before)
    thread.join()
    assert optimizer.state[model.layers[0].weight]["step"] == 2


def test_remove_goes_back_to_ordinary_steps() -> None:
    model, optimizer, other, its = pair(adam)
    with step_in_backward(optimizer) as steps:
        train(model, optimizer, range(2))
    steps.remove()
    backward(model, 2)
    assert model.layers[0].weight.grad is not None
    optimizer.step()
    train(other, its, range(3))
    assert_same(model, optimizer, other, its)
    assert not optimizer._optimizer_step_pre_hooks
    optimizer.zero_grad()
    step_in_backward(optimizer)  # and again
    backward(model, 3)
    assert model.layers[0].weight.grad is None


def test_it_keeps_nothing_alive_and_says_when_the_optimizer_is_gone() -> None:
    model = Net()
    optimizer = adam(model.parameters())
    step_in_backward(optimizer)
    backward(model, 0)
    gone = weakref.ref(optimizer)
    del optimizer
    assert gone() is None
    with pytest.warns(UserWarning, match="is gone"):
        backward(model, 0)
    backward(model, 0)  # said once
    optimizer = adam(model.parameters())
    step_in_backward(optimizer)
    backward(model, 0)
    assert model.layers[0].weight.grad is None
    gone_too = weakref.ref(model.layers[0].weight)
    del model, optimizer
    gc.collect()
    assert gone_too() is None
