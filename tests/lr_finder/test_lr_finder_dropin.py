"""`LRFinder` where code for torch_lr_finder sees more than the arguments: attributes, loaders, optimizers."""

import copy
from collections import UserDict

import pytest
import torch
from finder_runs import assert_same
from finder_task import Empty, make_task
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fusedopt
from fusedopt.lr_finder import LRFinder, TrainDataLoaderIter, ValDataLoaderIter, find_lr

pytestmark = pytest.mark.usefixtures("one_thread")
RANGE = {"end_lr": 0.5, "num_iter": 12}


def losses_of(finder, loader, **options):
    finder.range_test(loader, **RANGE | options)
    return finder.history["loss"]


def test_a_criterion_assigned_later_is_used():
    model, optimizer, train, _ = make_task()
    finder = LRFinder(model, optimizer, nn.MSELoss())
    expected = losses_of(LRFinder(*make_task()[:2], nn.L1Loss()), train)
    calls = []

    def spy(outputs, labels, criterion=nn.L1Loss()):  # noqa: B008
        calls.append(len(labels))
        return criterion(outputs, labels)

    finder.criterion = spy
    assert losses_of(finder, train, num_iter=12) == expected
    assert len(calls) == 12
    finder.reset()
    finder.criterion = nn.MSELoss()
    assert losses_of(finder, train) != expected


class Scaled(nn.Module):
    """A criterion with a parameter and a buffer."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, outputs, labels):
        self.count += 1
        return nn.functional.mse_loss(self.scale * outputs, labels)


def test_what_is_assigned_later_is_put_back_as_it_was_before_its_test():
    model, optimizer, train, _ = make_task()
    finder = LRFinder(model, optimizer, nn.MSELoss())
    expected = losses_of(LRFinder(*make_task()[:2], nn.MSELoss()), train)
    other, criterion = make_task()[0], Scaled()
    finder.model, finder.criterion = other, criterion
    finder.optimizer = fusedopt.SGD([*other.parameters(), criterion.scale], lr=1e-3, momentum=0.5)
    first = model.weight.detach().clone()
    before = copy.deepcopy((other.state_dict(), criterion.state_dict(), finder.optimizer.state_dict()))
    assert losses_of(finder, train)[0] == expected[0]
    assert criterion.count == 12
    finder.reset()
    assert_same((other.state_dict(), criterion.state_dict(), finder.optimizer.state_dict()), before)
    assert torch.equal(model.weight, first)
    finder.range_test(train, **RANGE)  # and again
    finder.model = model
    finder.reset()  # puts back what was tested
    assert_same(other.state_dict(), before[0])


def test_other_attributes_assigned_later_are_used():
    model, optimizer, train, _ = make_task(torch.float32)
    finder = LRFinder(model, optimizer, nn.MSELoss())
    dtypes = []
    model.register_forward_hook(lambda model, _, out: dtypes.append(out.dtype))
    finder.amp_backend, finder.amp_config = "torch", {"device_type": "cpu", "dtype": torch.float16}
    with pytest.raises(ValueError, match="grad_scaler"):
        finder.range_test(train, **RANGE)
    finder.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    finder.criterion = lambda out, y: nn.functional.mse_loss(out.float(), y)
    losses_of(finder, train)
    assert set(dtypes) == {torch.float16}
    finder.reset()
    assert finder.grad_scaler.get_scale() == 2.0**10
    finder.amp_backend = finder.criterion = finder.grad_scaler = None
    finder.closure = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    finder.device = "cpu"
    assert losses_of(finder, train) == losses_of(LRFinder(*make_task(torch.float32)[:2], nn.MSELoss()), train)


class Unrelated:
    """Iterable, but none of what torch_lr_finder takes."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


def test_loaders_of_other_types_are_refused_as_there_and_taken_by_find_lr():
    model, optimizer, train, val = make_task()
    finder = LRFinder(model, optimizer, nn.MSELoss())
    for loader in (Unrelated(train), [*train], ValDataLoaderIter(val), 3, None):
        with pytest.raises(ValueError, match=r"`train_loader` has unsupported type: .*TrainDataLoaderIter"):
            finder.range_test(loader)
    for loader in (Unrelated(val), [*val], TrainDataLoaderIter(val)):
        with pytest.raises(ValueError, match=r"`val_loader` has unsupported type: .*ValDataLoaderIter"):
            finder.range_test(train, val_loader=loader)
    assert finder.history == {"lr": [], "loss": []}
    finder.range_test(train, val_loader=ValDataLoaderIter(val), **RANGE)
    expected = finder.history["loss"]
    finder.reset()
    found = find_lr(model, optimizer, nn.MSELoss(), Unrelated(train), val_loader=Unrelated(val), start_lr=None, **RANGE)
    assert found.smoothed == expected


def test_a_validation_loader_without_an_end_is_refused():
    model, optimizer, train, val = make_task()
    with pytest.raises(ValueError, match="never ends; pass a ValDataLoaderIter"):
        find_lr(model, optimizer, nn.MSELoss(), train, val_loader=TrainDataLoaderIter(val))


def test_an_empty_loader_is_said_to_be_empty():
    model, optimizer, _, _ = make_task()
    with pytest.raises(ValueError, match="yields no batches"):
        LRFinder(model, optimizer, nn.MSELoss()).range_test(Empty())


class Bare(torch.optim.Optimizer):
    """An optimizer without Optimizer's constructor: it has no `state`, no hooks, no defaults."""

    def __init__(self, params, lr):
        self.param_groups = [{"params": list(params), "lr": lr}]
        self.velocity = [torch.zeros_like(p) for p in self.param_groups[0]["params"]]
        self.steps = 0

    def zero_grad(self, set_to_none=True):
        for p in self.param_groups[0]["params"]:
            p.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for p, v in zip(self.param_groups[0]["params"], self.velocity, strict=True):
            p -= self.param_groups[0]["lr"] * v.mul_(0.5).add_(p.grad)

    def state_dict(self):
        return {"param_groups": [{"lr": self.param_groups[0]["lr"]}]}


class Plain:
    """An optimizer that is none of torch's, with its state in attributes."""

    step, zero_grad, state_dict = Bare.step, Bare.zero_grad, Bare.state_dict
    __init__ = Bare.__init__

    def load_state_dict(self, state):
        raise AssertionError


@pytest.mark.parametrize("optimizer_class", [Bare, Plain])
@pytest.mark.parametrize("how", ["find_lr", "LRFinder"])
def test_an_optimizer_without_state(optimizer_class, how):
    model, reference, train, _ = make_task()
    optimizer = optimizer_class(model.parameters(), lr=1e-3)
    expected = find_lr(model, reference, nn.MSELoss(), train, start_lr=None, **RANGE).smoothed
    before = copy.deepcopy((model.state_dict(), optimizer.velocity, optimizer.state_dict()))
    if how == "find_lr":
        losses = find_lr(model, optimizer, nn.MSELoss(), train, start_lr=None, **RANGE).smoothed
    else:
        finder = LRFinder(model, optimizer, nn.MSELoss())
        losses = losses_of(finder, train)
        assert optimizer.steps == 12
        finder.reset()
    assert losses == pytest.approx(expected)
    assert optimizer.steps == 0
    assert_same((model.state_dict(), optimizer.velocity, optimizer.state_dict()), before)


class States(UserDict):
    """States that are not in a dict."""

    def __missing__(self, key):
        self[key] = UserDict()
        return self[key]


def test_states_in_other_mappings_are_put_back():
    model, _, train, _ = make_task()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.5)
    optimizer.state = States()
    find_lr(model, optimizer, nn.MSELoss(), train, **RANGE)
    assert not optimizer.state
    model(train.dataset.tensors[0]).sum().backward()
    optimizer.step()
    before = copy.deepcopy([state["momentum_buffer"] for state in optimizer.state.values()])
    find_lr(model, optimizer, nn.MSELoss(), train, **RANGE)
    assert_same([state["momentum_buffer"] for state in optimizer.state.values()], before)


def test_a_loss_of_one_element_need_not_be_a_scalar():
    model, optimizer, train, _ = make_task()
    expected = losses_of(LRFinder(model, optimizer, nn.MSELoss()), train)
    model, optimizer, train, _ = make_task()
    finder = LRFinder(model, optimizer, lambda out, y: nn.functional.mse_loss(out, y).reshape(1))
    assert losses_of(finder, train, accumulation_steps=1) == expected


def test_the_attributes_are_what_they_were_given_as():
    model, optimizer, train, _ = make_task()
    assert LRFinder(model, optimizer, nn.MSELoss(), device="cpu").device == "cpu"
    finder = LRFinder(model, optimizer, nn.MSELoss())
    assert finder.device == finder.model_device == torch.device("cpu")
    loader = DataLoader(TensorDataset(*train.dataset.tensors), 4)
    with pytest.warns(UserWarning, match="start_lr=0 is the optimizer's own"):
        finder.range_test(loader, start_lr=0, **RANGE)
    assert finder.history["lr"][0] == 1e-3
