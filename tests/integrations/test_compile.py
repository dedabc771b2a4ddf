"""`torch.compile` of a whole training step: ours breaks the graph, is fused, and comes to the weights of torch's."""

from functools import partial

import pytest
import torch
from integrations.problem import CLASSES, loader, make_model
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy

import fusedopt

BREAKS = {"Optimizer.zero_grad", "Tensor.backward()", "FusedStep.step"}  # the last of them is ours


@pytest.fixture(autouse=True)
def fresh():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("both", ["AdamW"], indirect=True)  # tests/optim/test_regressions.py compiles every class
def test_a_training_step(both):
    def training(make):
        torch.compiler.reset()
        counters.clear()
        net = make_model()
        opt = make(net.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(opt, 1, 0.9)
        graphs = CompileCounterWithBackend("inductor")

        @partial(torch.compile, backend=graphs)
        def step(inputs, labels):
            opt.zero_grad()
            cross_entropy(net(inputs), labels).backward()
            opt.step()

        for inputs, labels in loader():
            step(inputs, labels)
            schedule.step()
        if type(opt) is fusedopt.AdamW:
            assert {e.path for e in opt.explain()} == {"fused"}
            assert graphs.frame_count == 1  # the network's: no new rate and no new state compiles anything again
            assert {reason.partition("`")[2].partition("`")[0] for reason in counters["graph_break"]} == BREAKS
        return net

    both(training)


@pytest.mark.parametrize("name", CLASSES)
def test_one_graph_is_refused_as_torchs_is(name):
    """And nothing has been changed then."""
    for module in torch.optim, fusedopt:
        torch.compiler.reset()
        net = make_model()
        opt = getattr(module, name)(net.parameters(), **CLASSES[name])
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        before = [p.detach().clone() for p in net.parameters()]
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(lambda opt=opt: opt.step(), backend="eager", fullgraph=True)()
        assert all(map(torch.equal, before, net.parameters()))
        assert not any(opt.state.values())
