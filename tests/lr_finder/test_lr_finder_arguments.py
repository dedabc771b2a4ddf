"""Arguments of a range test that are wrong."""

import pytest
import torch
from finder_task import Empty, make_task
from torch import nn
from torch.utils.data import TensorDataset

import fusedopt
from fusedopt.lr_finder import LRFinder, find_lr

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_finder_refuses_a_scheduler():
    model, optimizer, train, _ = make_task()
    finder = LRFinder(model, optimizer, nn.MSELoss())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(RuntimeError, match="already has a scheduler"):
        finder.range_test(train)
    with pytest.raises(RuntimeError, match="already has a scheduler"):
        LRFinder(model, optimizer, nn.MSELoss())


@pytest.mark.parametrize("cls", [torch.optim.Rprop, fusedopt.Rprop])
def test_the_finder_refuses_rprop_whose_steps_do_not_follow_the_learning_rate(cls):
    model, _, train, _ = make_task()
    optimizer = cls(model.parameters())
    message = "the learning rate of Rprop is the length of its first steps only"
    with pytest.raises(ValueError, match=message):
        find_lr(model, optimizer, nn.MSELoss(), train)
    with pytest.raises(ValueError, match=message):
        LRFinder(model, optimizer, nn.MSELoss())


def test_the_finder_warns_of_an_optimizer_of_another_model():
    model, _, train, _ = make_task()
    _, optimizer, _, _ = make_task()
    with pytest.warns(UserWarning, match="holds none of the model's parameters"):
        find_lr(model, optimizer, nn.MSELoss(), train, num_iter=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loader": []}, "yields no batches"),
        ({"loader": 3}, "unsupported type int"),
        ({"loader": iter([(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())])}, "ran out of batches after 1"),
        ({"loader": TensorDataset(torch.zeros(3, 2), torch.zeros(3, 1))}, "pass a DataLoader"),
        ({"loader": [{"x": 1}]}, "batch_fn=lambda"),
        ({"loader": [torch.zeros(2)]}, "a Tensor, where"),
        ({"loader": [(1,)]}, "a tuple of 1, where"),
        ({"loader": Empty()}, "yields no batches"),
        ({"val_loader": []}, "validation loader yields no batches"),
        ({"val_loader": 3}, "val_loader has unsupported type"),
        ({"criterion": None}, "a criterion is needed"),
        ({"criterion": nn.MSELoss(reduction="none")}, "must be a scalar tensor, not a tensor of shape"),
        ({"criterion": lambda out, y: 1.0}, "must be a scalar tensor, not float"),
        ({"closure": lambda model, batch: None}, "pass criterion=None"),
        ({"step_mode": "log"}, r"expected one of \(exp, linear\), got log"),
        ({"num_iter": 1}, "larger than 1"),
        ({"end_lr": 1e-9}, "end_lr must be larger"),
        ({"start_lr": -1.0}, "start_lr must be finite and at least 0"),
        ({"start_lr": [1e-3, 1e-2]}, "2 learning rates for 1 parameter groups"),
        ({"smooth_f": 1}, "smooth_f"),
        ({"diverge_th": 0.5}, "diverge_th must be at least 1"),
        ({"accumulation_steps": 0}, "accumulation_steps must be at least 1"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(options, message):
    model, optimizer, train, _ = make_task()
    options = {"loader": train, "criterion": nn.MSELoss(), "num_iter": 3} | options
    with pytest.raises(ValueError, match=message):
        find_lr(model, optimizer, **options)
