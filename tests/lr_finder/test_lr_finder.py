"""The range test: ramps, curves, divergence, batches of all kinds, mixed precision, parity with torch_lr_finder."""

import math
from itertools import pairwise

import pytest
import torch
from finder_task import make_task
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fusedopt
from fusedopt.lr_finder import LRFinder, find_lr
from fusedopt.lr_finder.curve import Curve, ramp
from fusedopt.lr_finder.step import Task
from fusedopt.lr_finder.sweep import sweep

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def task():
    """A regression in float64 that diverges at a learning rate of a few units, without anything random."""
    return make_task()


# fmt: off
RECORDED = {  # by torch_lr_finder 0.2.2: the range and the smoothed losses
    "exp": (
        {"end_lr": 100, "num_iter": 24},
        [5.52529341, 5.26479007, 5.06458196, 5.08240166, 4.8430469, 4.66169129, 4.67447569, 4.45170101, 4.27857336,
         4.21701768, 4.01069671, 3.82122042, 3.632917, 3.45648973, 3.36856745, 3.24825913, 3.29052013, 3.37672913,
         16.5475694],
        8.18546731,
    ),
    "linear": (
        {"end_lr": 2.0, "num_iter": 20, "step_mode": "linear", "accumulation_steps": 2, "smooth_f": 0.2},
        [2.92191975, 3.01378659, 2.5183436, 2.12533342, 1.70662765, 1.41603971, 1.22593875, 1.09902797, 0.885182878,
         0.763217537, 0.633892855, 0.536575568, 0.436944878, 0.383478463, 0.421789839, 0.451255406, 0.927468996,
         1.45191169, 6.89811009],
        1.89478947,
    ),
    "validation": (
        {"start_lr": 1e-2, "end_lr": 10.0, "num_iter": 24, "validate": True},
        [4.26987253, 4.2574965, 4.23889247, 4.18373084, 4.10652076, 4.0198013, 3.88455719, 3.73010925, 3.57101451,
         3.39703483, 3.22920337, 3.07125606, 2.91971658, 2.77768257, 2.64945755, 2.57342932, 2.61347281, 2.82611435,
         20.0935999],
        2.22754295,
    ),
}
# fmt: on


def history(finder_class, options):
    model, optimizer, train, val = make_task()
    options = dict(options)
    if options.pop("validate", False):
        options["val_loader"] = val
    finder = finder_class(model, optimizer, nn.MSELoss())
    finder.range_test(train, **options)
    return finder


@pytest.mark.parametrize("name", RECORDED)
def test_histories_are_those_of_torch_lr_finder(name):
    options, losses, last_lr = RECORDED[name]
    finder = history(LRFinder, options)
    assert finder.history["loss"] == pytest.approx(losses, rel=1e-8)
    assert len(finder.history["lr"]) == len(losses)
    assert finder.history["lr"][-1] == pytest.approx(last_lr, rel=1e-8)
    assert finder.best_loss == min(finder.history["loss"])


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.filterwarnings("ignore")
def test_histories_beside_torch_lr_finder_where_it_is_installed(name):
    theirs = pytest.importorskip("torch_lr_finder").LRFinder
    assert history(LRFinder, RECORDED[name][0]).history == history(theirs, RECORDED[name][0]).history


@pytest.mark.parametrize("lag", [1, 4, 100])
@pytest.mark.parametrize(
    "options", [{}, {"diverge_th": None}, {"end_lr": 1.0}], ids=["diverges", "runs on", "completes"]
)
def test_a_late_check_leaves_the_same_curve(lag, options):
    """On a GPU losses are looked at some steps later, when they have arrived."""
    curves = []
    for steps_late in (0, lag):
        model, optimizer, train, _ = make_task()
        curve = Curve(diverge_th=options.get("diverge_th", 5))
        rates = ramp(1e-3, options.get("end_lr", 100.0), 24)
        sweep(Task(model, optimizer, nn.MSELoss(), torch.device("cpu")), [rates], train, None, curve, lag=steps_late)
        curves.append(curve)
    assert curves[0] == curves[1]
    assert curves[0].stopped == ("completed" if options else "diverged")
    assert len(curves[0].lrs) == (24 if options else 19)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", RECORDED)
def test_a_gpu_records_the_same_history_and_is_not_waited_for(name):
    options, losses, _ = RECORDED[name]
    model, optimizer, train, val = make_task(device="cuda")
    options = dict(options)
    if options.pop("validate", False):
        options["val_loader"] = val
    batches = [[t.cuda() for t in batch] for batch in train]
    finder = LRFinder(model, optimizer, nn.MSELoss())
    torch.cuda.set_sync_debug_mode("error")
    try:
        finder.range_test(batches, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert finder.history["loss"] == pytest.approx(losses, rel=1e-6)


def test_golden_ramps():
    exp = [0.01, 0.01258925, 0.01584893, 0.01995262, 0.02511886, 0.03162278, 0.03981072, 0.05011872, 0.06309573]
    assert ramp(0.01, 0.1, 11) == pytest.approx([*exp, 0.07943282, 0.1], rel=1e-6)
    assert ramp(0.01, 0.1, 11, "linear") == pytest.approx([0.01 + 0.009 * i for i in range(11)])
    assert ramp(0.01, 0.1, 11)[1] == 0.012589254117941673
    assert ramp(3e-4, 0.1, 101)[86] == pytest.approx(0.04434013138652989, rel=1e-14)
    assert ramp(3e-4, 0.1, 100)[58] == pytest.approx(0.009019270843, rel=1e-9)


@pytest.mark.parametrize("mode", ["exp", "linear", "EXP"])
@pytest.mark.parametrize(("start", "end"), [(1e-7, 10), (3e-4, 0.1), (1e-4, 1.7), (0.0058, 0.3)])
def test_ramps_begin_and_end_exactly(mode, start, end):
    for num_iter in (2, 3, 100, 137):
        lrs = ramp(start, end, num_iter, mode)
        assert (lrs[0], lrs[-1], len(lrs)) == (start, end, num_iter)
        assert all(a < b for a, b in pairwise(lrs))


def curve_of(losses, **options):
    curve = Curve(**options)
    for i, loss in enumerate(losses):
        if not curve.add(float(i), loss):
            break
    return curve


@pytest.mark.parametrize(
    ("losses", "stops_at"),
    [
        ([2.0, 1.0, 4.9, 5.1], 3),
        ([2.0, 1.0, 3.0, 4.0], None),
        ([-1.0, -2.0, -3.0, -2.5, -4.0, -3.0], None),  # 5 times the best would stop at once
        ([-1.0, -2.0, -3.0, 8.9, 9.1], 4),  # 3 + 4 * 3
        ([2.0, 0.5, -0.1, 0.1, 0.4, -0.2], None),  # crosses zero: the scale is the fall of 2.1
        ([2.0, 0.5, -0.1, 8.2, 8.4], 4),
        ([2.0, 1.0, math.nan, 1.0], 2),
        ([2.0, 1.0, math.inf, 1.0], 2),
        ([-2.0, -1.0, -math.inf], 2),
        ([math.nan, 1.0], 0),
    ],
)
def test_where_the_check_for_divergence_stops(losses, stops_at):
    curve = curve_of(losses, smooth_f=0)
    assert len(curve.losses) == (len(losses) if stops_at is None else stops_at + 1)
    reason = "completed" if stops_at is None else "diverged" if math.isfinite(losses[stops_at]) else "loss not finite"
    assert curve.stopped == reason


def test_without_early_stop_a_bad_value_does_not_spoil_what_follows():
    curve = curve_of([2.0, math.nan, 1.0, 1e9, math.inf, 1.0], diverge_th=None, smooth_f=0.5)
    assert curve.stopped == "completed"
    assert curve.smoothed[2] == 1.5
    assert math.isnan(curve.smoothed[1])
    assert math.isfinite(curve.smoothed[5])


def test_smoothing_starts_at_the_first_loss():
    assert curve_of([4.0, 2.0, 0.0], smooth_f=0.25).smoothed == [4.0, 3.5, 2.625]


def test_the_learning_rates_are_those_of_the_steps(task):
    model, optimizer, train, _ = task
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    result = find_lr(model, optimizer, nn.MSELoss(), train, start_lr=0.01, end_lr=0.1, num_iter=11, steps_per_lr=3)
    assert seen == [lr for lr in ramp(0.01, 0.1, 11) for _ in range(3)]
    assert result.lrs == ramp(0.01, 0.1, 11)
    assert result.stopped == "completed"


def test_a_learning_rate_that_is_a_tensor_stays_one():
    model, _, train, _ = make_task()
    lr = torch.tensor(0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, foreach=False)
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"].item()))
    find_lr(model, optimizer, nn.MSELoss(), train, start_lr=0.01, end_lr=0.1, num_iter=4)
    assert seen == pytest.approx(ramp(0.01, 0.1, 4))
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.5


def test_several_steps_per_learning_rate_record_their_mean_loss(task):
    model, optimizer, train, _ = task
    raw = []
    criterion = nn.MSELoss()
    criterion.register_forward_hook(lambda *args: raw.append(args[-1].item()))
    result = find_lr(model, optimizer, criterion, train, end_lr=0.1, num_iter=5, steps_per_lr=4)
    assert len(raw) == 20
    assert result.losses == pytest.approx([sum(raw[i : i + 4]) / 4 for i in range(0, 20, 4)])


def test_accumulated_batches_are_as_one_large_batch():
    losses = []
    for size, accumulation in ((12, 1), (3, 4)):
        model, optimizer, train, _ = make_task()
        loader = DataLoader(train.dataset, size)
        result = find_lr(
            model, optimizer, nn.MSELoss(), loader, end_lr=1.0, num_iter=8, accumulation_steps=accumulation
        )
        losses.append(result.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[0][0] > 1.1 * losses[0][-1]


def grouped():
    model, _, train, _ = make_task()
    optimizer = fusedopt.SGD([{"params": [model.weight], "lr": 0.2}, {"params": [model.bias], "lr": 0.02}], lr=1.0)
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append([g["lr"] for g in optimizer.param_groups]))
    return model, optimizer, train, seen


def test_groups_keep_their_ratio():
    model, optimizer, train, seen = grouped()
    whole = [train.dataset.tensors]
    result = find_lr(model, optimizer, nn.MSELoss(), whole, start_lr=1e-4, end_lr=1.0, num_iter=40)
    assert [lrs[0] for lrs in seen] == ramp(1e-4, 1.0, 40)
    assert [lrs[1] / lrs[0] for lrs in seen] == pytest.approx([0.1] * 40)
    assert result.group_lrs == pytest.approx([result.suggestion, 0.1 * result.suggestion])


def test_a_list_of_first_learning_rates():
    model, optimizer, train, seen = grouped()
    result = find_lr(model, optimizer, nn.MSELoss(), train, start_lr=[1e-3, 3e-3], end_lr=0.1, num_iter=4)
    assert (seen[0], seen[-1][0]) == ([1e-3, 3e-3], 0.1)
    assert [lrs[1] / lrs[0] for lrs in seen] == pytest.approx([3.0] * 4)
    assert result.group_scales == pytest.approx([1.0, 3.0])


def test_in_the_finder_groups_meet_at_the_end_as_in_torch_lr_finder():
    model, optimizer, train, seen = grouped()
    finder = LRFinder(model, optimizer, nn.MSELoss())
    finder.range_test(train, end_lr=2.0, num_iter=3)
    assert seen == [[0.2, 0.02], pytest.approx([math.sqrt(0.4), 0.2]), [2.0, 2.0]]
    finder.reset()
    seen.clear()
    finder.range_test(train, end_lr=2.0, num_iter=3, keep_ratio=True)
    assert [lrs[1] / lrs[0] for lrs in seen] == pytest.approx([0.1] * 3)


def test_a_model_that_is_trained_already_gets_no_number_but_a_picture_of_its_curve():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.zero_()
    x = torch.randn(4000, 4)
    y = x.sum(1, keepdim=True) + torch.randn(4000, 1)
    loader = DataLoader(TensorDataset(x, y), 16, shuffle=True)
    result = find_lr(model, fusedopt.SGD(model.parameters(), lr=0.1), nn.MSELoss(), loader)
    assert len(result.lrs) > 80
    assert set(result.refusals) == {"steepest", "valley", "slide", "minimum"}
    assert result.suggestions == {}
    with pytest.raises(ValueError, match=r"by chance|never falls|flat"):
        _ = result.suggestion
