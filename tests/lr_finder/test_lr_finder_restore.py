"""Nothing is left changed by a range test: training afterwards is bit for bit what it would have been."""

import copy

import pytest
import torch
from finder_runs import OPTIMIZERS, Run, assert_same
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fusedopt
from fusedopt.lr_finder import LRFinder, find_lr
from fusedopt.lr_finder.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_afterwards_is_the_same_bit_for_bit(name, device):
    undisturbed = Run(OPTIMIZERS[name], device)
    undisturbed.train(2)
    expected = undisturbed.everything()
    run = Run(OPTIMIZERS[name], device)
    assert len(run.find(val_loader=run.loader).losses) == 12  # before there is any state
    run.train(1)
    run.find()
    run.train(1)
    assert_same(run.everything(), expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_everything_is_put_back_at_once_and_into_the_same_objects(name):
    run = Run(OPTIMIZERS[name])
    run.train(1)
    run.model.norm.eval()
    before = copy.deepcopy(run.everything())
    objects = [run.everything()[key] for key in ("parameters", "buffers", "gradients", "states")]
    memory = [p.data_ptr() for p in run.model.parameters()]
    result = run.find()
    assert_same(run.everything(), before)
    for was, now in zip(
        objects, (run.everything()[key] for key in ("parameters", "buffers", "gradients")), strict=False
    ):
        assert all(a is b for a, b in zip(was, now, strict=True))
    assert [p.data_ptr() for p in run.model.parameters()] == memory
    for was, now in zip(objects[3], run.everything()["states"], strict=True):
        assert was is now is None or all(was[key] is now[key] for key in was)
    assert_same(run.find().losses, result.losses)  # and so a second call finds the same


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("at", ["forward", "loss", "step", "validation"])
def test_everything_is_put_back_after_an_exception(monkeypatch, error, at):
    run = Run(OPTIMIZERS["fusedopt.AdamW"])
    run.train(1)
    before = copy.deepcopy(run.everything())
    calls = iter(range(1000))

    def interrupt(*args, **kwargs):
        if next(calls) == 5:
            raise error("in the middle")

    hooks = []
    if at == "forward":
        hooks.append(run.model.last.register_forward_pre_hook(interrupt))
    elif at == "loss":
        hooks.append(run.criterion.register_forward_hook(interrupt))
    elif at == "step":
        hooks.append(run.optimizer.register_step_post_hook(interrupt))
    else:
        hooks.append(run.model.register_forward_pre_hook(lambda model, x: None if model.training else interrupt()))
    with pytest.raises(error):
        run.find(val_loader=run.loader)
    for hook in hooks:
        hook.remove()
    assert_same(run.everything(), before)


def test_refused_arguments_change_nothing():
    run = Run(OPTIMIZERS["fusedopt.SGD"])
    run.train(1)
    before = copy.deepcopy(run.everything())
    for wrong in ({"method": "best"}, {"num_iter": 1}, {"end_lr": 0.0}, {"smooth_f": 1.0}, {"steps_per_lr": 0}):
        with pytest.raises(ValueError, match=r"method|num_iter|learning rate|smooth_f|steps_per_lr"):
            run.find(**wrong)
    assert_same(run.everything(), before)


def test_float32_states_of_bfloat16_parameters_are_not_rounded():
    run = Run(OPTIMIZERS["torch.SGD"], dtype=torch.bfloat16)
    run.train(1)
    for state in run.optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].float() + 1e-5
        state["master"] = torch.rand(3)  # what load_state_dict would cast too
    before = [{k: v.clone() for k, v in state.items()} for state in run.optimizer.state.values()]
    snapshot = Snapshot([run.model], run.optimizer)
    for state in run.optimizer.state.values():
        for value in state.values():
            value.zero_()
    snapshot.restore()
    assert_same([dict(s) for s in run.optimizer.state.values()], before)


@pytest.mark.parametrize("in_memory", [True, False])
def test_finder_reset(tmp_path, in_memory):
    undisturbed = Run(OPTIMIZERS["fusedopt.AdamW"])
    undisturbed.train(2)
    expected = undisturbed.everything()
    run = Run(OPTIMIZERS["fusedopt.AdamW"])
    run.train(1)
    finder = LRFinder(
        run.model, run.optimizer, run.criterion, memory_cache=in_memory, cache_dir=str(tmp_path), batch_fn=run.batch_fn
    )
    assert len(list(tmp_path.iterdir())) == (0 if in_memory else 1)
    before = copy.deepcopy(run.everything())
    finder.range_test(run.loader, start_lr=1e-4, end_lr=1, num_iter=10)
    assert not torch.equal(run.everything()["parameters"][1], before["parameters"][1])  # as in 0.2.2, until reset()
    with pytest.raises(RuntimeError, match="call reset"):
        finder.range_test(run.loader, end_lr=1, num_iter=10)
    finder.reset()
    assert_same(run.everything(), before)
    run.train(1)
    assert_same(run.everything(), expected)
    del finder
    assert not list(tmp_path.iterdir())


def test_finder_resets_itself_after_an_exception():
    run = Run(OPTIMIZERS["fusedopt.AdamW"])
    run.train(1)
    before = copy.deepcopy(run.everything())
    finder = LRFinder(run.model, run.optimizer, run.criterion, batch_fn=run.batch_fn)

    def seven(steps, total):
        yield from range(7)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finder.range_test(run.loader, end_lr=1, num_iter=10, progress=seven)
    assert_same(run.everything(), before)
    assert len(finder.history["lr"]) == len(finder.history["loss"]) == 7


def test_reset_rewinds_the_generators_once():
    run = Run(OPTIMIZERS["fusedopt.SGD"])
    finder = LRFinder(run.model, run.optimizer, run.criterion, batch_fn=run.batch_fn)
    finder.range_test(run.loader, end_lr=1, num_iter=3)
    finder.reset()
    drawn = torch.rand(1)
    finder.reset()
    assert not torch.equal(torch.rand(1), drawn)


def test_a_scaler_is_put_back():
    model = nn.Linear(4, 2)
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
    for used in (False, True):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=2)
        if used:
            scaler.scale(model(torch.ones(1, 4)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        before = copy.deepcopy(vars(scaler))
        batches = [(torch.randn(8, 4), torch.randn(8, 2))]
        find_lr(model, optimizer, nn.MSELoss(), batches, num_iter=20, amp_dtype=torch.float16, grad_scaler=scaler)
        assert_same(vars(scaler), before)


def test_a_loader_in_the_middle_of_a_pass_with_workers_that_persist():
    """Iterating over the loader itself would restart the workers' one iterator."""
    data = TensorDataset(torch.randn(40, 4), torch.randint(2, (40,)))
    model = nn.Linear(4, 2)
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1)

    def batches(disturb):
        torch.manual_seed(0)
        loader = DataLoader(data, 4, shuffle=True, num_workers=1, persistent_workers=True)
        seen = []
        if disturb:
            find_lr(model, optimizer, nn.CrossEntropyLoss(), loader, num_iter=2)
        for _ in range(2):
            for i, (inputs, _) in enumerate(loader):
                seen.append(inputs)
                if disturb and i == 3:
                    find_lr(model, optimizer, nn.CrossEntropyLoss(), loader, num_iter=2)
        return torch.cat(seen)

    assert torch.equal(batches(disturb=True), batches(disturb=False))


def test_a_scheduler_is_left_alone():
    model = nn.Linear(4, 2)
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step()
    scheduler.step()
    groups, state = copy.deepcopy(optimizer.state_dict()), scheduler.state_dict()
    find_lr(model, optimizer, nn.CrossEntropyLoss(), [(torch.randn(8, 4), torch.randint(2, (8,)))], num_iter=5)
    assert_same(optimizer.state_dict(), groups)
    assert scheduler.state_dict() == state
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.025


def test_frozen_layers_stay_frozen_and_a_model_in_evaluation_mode_is_trained():
    for training in (True, False):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
        model.train(training)
        model[1].eval()
        modes = []
        model.register_forward_hook(lambda model, *_, modes=modes: modes.append([m.training for m in model]))
        optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
        batches = [(torch.randn(8, 4), torch.randint(2, (8,)))]
        find_lr(model, optimizer, nn.CrossEntropyLoss(), batches, val_loader=batches, num_iter=2)
        assert modes == [[True, not training, True, True], [False] * 4] * 2
        assert [m.training for m in model] == [training, False, training, training]


def test_an_expanded_buffer_and_a_lazy_parameter():
    model = nn.Linear(4, 2)
    model.register_buffer("expanded", torch.ones(1).expand(5))
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(8, 4), torch.randint(2, (8,)))]
    find_lr(model, optimizer, nn.CrossEntropyLoss(), batches, num_iter=2)
    lazy = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(ValueError, match="run one batch through the model"):
        find_lr(lazy, torch.optim.SGD(lazy.parameters(), lr=0.1), nn.CrossEntropyLoss(), batches, num_iter=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_that_is_moved_to_the_device_comes_back():
    model = nn.Linear(4, 2)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(8, 4), torch.randint(2, (8,)))]
    find_lr(model, optimizer, nn.CrossEntropyLoss(), batches, num_iter=2, device="cuda")
    assert_same([p.detach() for p in model.parameters()], before)
