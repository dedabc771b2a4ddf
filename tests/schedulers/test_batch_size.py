"""Batch sizes that grow where the learning rate would decay."""

import copy

import pytest
import torch
from schedule_runs import lrs, parameter, sgd
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import fusedopt
from fusedopt.schedulers import BatchSizeScheduler, HalvingLR, InverseDecayLR, WarmupLR, simulate


def loader(batch_size=8, samples=100_000, **kwargs):
    return DataLoader(TensorDataset(torch.arange(samples)), batch_size=batch_size, **kwargs)


def run(scheduler, epochs):
    """Batch size and learning rates of so many epochs."""
    seen = []
    for _ in range(epochs):
        seen.append((scheduler.batch_size, lrs(scheduler.optimizer)))
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def test_the_batch_grows_and_the_learning_rate_decays_after_the_cap():
    seen = run(BatchSizeScheduler(StepLR(sgd(0.1), 2, gamma=0.2), loader(), max_batch_size=100), 8)
    assert [size for size, _ in seen] == [8, 8, 40, 40, 100, 100, 100, 100]
    assert [lr for _, (lr,) in seen] == pytest.approx([0.1] * 4 + [0.05] * 2 + [0.01] * 2, rel=1e-12)
    assert [lr for _, (lr,) in seen[:4]] == [0.1] * 4  # to the last bit


SCHEDULES = {
    "cosine": lambda o: CosineAnnealingLR(o, 9),
    "exponential": lambda o: ExponentialLR(o, 0.7),
    "multi-step": lambda o: MultiStepLR(o, [3, 6], 0.2),
    "inverse": lambda o: InverseDecayLR(o, 0.5),
    "warmup": lambda o: WarmupLR(o, 3, after=CosineAnnealingLR(o, 8)),
    "cyclic": lambda o: CyclicLR(o, 0.01, 0.1, 3),
    "one-cycle": lambda o: OneCycleLR(o, 0.1, 12),
}


@pytest.mark.parametrize("cap", [8, 30, 10**9])
@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_is_that_of_the_schedule(name, cap):
    """lr / B is the schedule's lr / B0, up to the rounding of B."""
    make = SCHEDULES[name]
    alone = simulate(make(sgd(0.1, 0.03)), 12)
    scheduler = BatchSizeScheduler(make(sgd(0.1, 0.03)), loader(samples=10**6), max_batch_size=cap)
    optimizer = scheduler.optimizer
    for epoch in range(12):
        size = scheduler.batch_size
        assert 8 <= size <= max(cap, 8)
        for group, lr in enumerate(lrs(optimizer)):
            ideal = lr / (alone.lr[epoch, group].item() / 8) if alone.lr[epoch, group] > 1e-12 else 10**6
            assert abs(size - min(ideal, cap, 10**6)) <= 0.5 + 1e-6
            assert lr <= alone.lr[: epoch + 1, group].max() * (1 + 1e-12)
        assert [group["momentum"] for group in optimizer.param_groups] == alone.momentum[epoch].tolist()
        optimizer.step()
        scheduler.step()


def test_a_cap_at_the_start_is_the_schedule_itself():
    alone = simulate(CosineAnnealingLR(sgd(0.1, 0.03), 9), 12).lr.tolist()
    seen = run(BatchSizeScheduler(CosineAnnealingLR(sgd(0.1, 0.03), 9), loader(), max_batch_size=8), 12)
    assert [size for size, _ in seen] == [8] * 12
    for (_, lr), expected in zip(seen, alone, strict=True):
        assert lr == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_rising_learning_rates_stay_as_they_are():
    assert run(BatchSizeScheduler(WarmupLR(sgd(0.1), 3), loader(), max_batch_size=99), 5) == [
        (8, [lr]) for lr in simulate(WarmupLR(sgd(0.1), 3), 5).lr[:, 0].tolist()
    ]


def test_a_learning_rate_may_start_at_zero():
    schedule = LambdaLR(sgd(0.1), lambda t: t / 2)
    assert run(BatchSizeScheduler(schedule, loader(), max_batch_size=99), 3) == [(8, [0.0]), (8, [0.05]), (8, [0.1])]


def test_groups_that_decay_differently_share_the_batch_of_the_slowest():
    schedule = LambdaLR(sgd(0.1, 0.1), [lambda t: 0.5**t, lambda t: 0.25**t])
    assert run(BatchSizeScheduler(schedule, loader(), max_batch_size=999), 3) == [
        (8, [0.1, 0.1]),
        (16, [0.1, 0.05]),
        (32, [0.1, 0.025]),
    ]


@pytest.mark.parametrize("momentum", [0.9, 0.95, 0.98, 0.5])
def test_batch_is_proportional_to_one_over_one_minus_momentum(momentum):
    optimizers = sgd(0.1, momentum=momentum), fusedopt.Adam([parameter()], lr=0.1, betas=(momentum, 0.999))
    for optimizer in optimizers:
        scheduler = BatchSizeScheduler(HalvingLR(optimizer), loader(100), max_batch_size=1500, base_momentum=0.9)
        ideal = 100 * 0.1 / (1 - momentum)
        for epoch in range(6):
            wanted = ideal * 2**epoch
            assert scheduler.batch_size == min(round(wanted), 1500)
            assert lrs(optimizer) == pytest.approx([0.1 * min(1, 1500 / wanted)], rel=1e-12)
            optimizer._opt_called = True
            scheduler.step()


def test_a_metric_goes_to_the_schedule():
    scheduler = BatchSizeScheduler(ReduceLROnPlateau(sgd(0.1), patience=0), loader(), max_batch_size=1000)
    for metric in (1.0, 1.0, 1.0):
        scheduler.step(metric)
    assert scheduler.batch_size == 800
    assert scheduler.get_last_lr() == lrs(scheduler.optimizer) == [0.1]


def test_a_tensor_learning_rate_stays_the_same_tensor():
    lr = torch.tensor(0.1)
    scheduler = BatchSizeScheduler(HalvingLR(sgd(lr)), loader(), max_batch_size=16)
    for size, expected in ((8, 0.1), (16, 0.1), (16, 0.05)):
        assert (scheduler.batch_size, lr.item()) == (size, pytest.approx(expected))
        scheduler.optimizer.step()
        scheduler.step()
    assert scheduler.optimizer.param_groups[0]["lr"] is lr


@pytest.mark.parametrize("name", SCHEDULES)
def test_resumes_after_every_epoch(name):
    def make():
        return BatchSizeScheduler(SCHEDULES[name](sgd(0.1, 0.03)), loader(), max_batch_size=30)

    expected = run(make(), 11)
    for stop in range(11):
        first, second = make(), make()
        run(first, stop)
        state, optimizer_state = copy.deepcopy((first.state_dict(), first.optimizer.state_dict()))
        if stop % 2:
            second.optimizer.load_state_dict(optimizer_state)
            second.load_state_dict(state)
        else:
            second.load_state_dict(state)
            second.optimizer.load_state_dict(optimizer_state)
        assert run(second, 11 - stop) == expected[stop:]


def test_a_loaded_state_brings_its_arguments():
    def make(batch_size, cap, base_momentum):
        schedule = HalvingLR(sgd(0.1))
        options = {"max_batch_size": cap, "base_momentum": base_momentum}
        return BatchSizeScheduler(schedule, loader(batch_size), **options)

    first, second = make(8, 50, 0.8), make(16, 99, 0.5)
    expected = run(make(8, 50, 0.8), 6)
    assert expected != run(make(16, 99, 0.5), 6)
    run(first, 2)
    second.load_state_dict(first.state_dict())
    assert run(second, 4) == expected[2:]


# Loaders


def epochs(data, scheduler, count=3):
    """The batches of so many epochs, as lists of samples."""
    seen = []
    for epoch in range(count):
        if isinstance(data.sampler, DistributedSampler):
            data.sampler.set_epoch(epoch)
        seen.append([batch.tolist() for (batch,) in data])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    "options",
    [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}, {"num_workers": 1, "prefetch_factor": 4}],
    ids=["no-workers", "workers", "persistent-workers", "prefetch"],
)
def test_each_epoch_has_its_batch_size_and_every_sample_once(options):
    data = loader(5, 43, shuffle=True, **options)
    scheduler = BatchSizeScheduler(HalvingLR(sgd(0.1)), data, max_batch_size=15)
    for size, batches in zip((5, 10, 15), epochs(data, scheduler), strict=True):
        assert sorted(sample for batch in batches for sample in batch) == list(range(43))
        assert [len(batch) for batch in batches[:-1]] == [size] * (43 // size)
        assert len(batches[-1]) == 43 % size


def test_length_of_the_loader_is_that_of_the_next_epoch():
    data = loader(5, 43)
    scheduler = BatchSizeScheduler(HalvingLR(sgd(0.1)), data, max_batch_size=15)
    for length in (9, 5, 3):
        assert len(data) == length == len(list(data))
        epochs(data, scheduler, 1)


def test_processes_agree_and_share_the_samples():
    seen = []
    for rank in range(3):
        dataset = TensorDataset(torch.arange(60))
        sampler = DistributedSampler(dataset, num_replicas=3, rank=rank, shuffle=True)
        data = DataLoader(dataset, batch_size=2, sampler=sampler)
        seen.append(epochs(data, BatchSizeScheduler(HalvingLR(sgd(0.1)), data, max_batch_size=8)))
    for epoch, size in enumerate((2, 4, 8)):
        batches = [ranks[epoch] for ranks in seen]
        assert sorted(s for rank in batches for batch in rank for s in batch) == list(range(60))
        assert {len(batch) for rank in batches for batch in rank[:-1]} == {size}


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_batch_is_never_larger_than_the_epoch(drop_last):
    data = loader(8, 20, drop_last=drop_last)
    scheduler = BatchSizeScheduler(HalvingLR(sgd(0.1)), data, max_batch_size=1000)
    sizes = [[len(batch) for batch in batches] for batches in epochs(data, scheduler, 4)]
    assert sizes == ([[8, 8], [16], [20], [20]] if drop_last else [[8, 8, 4], [16, 4], [20], [20]])
    assert lrs(scheduler.optimizer) == pytest.approx([0.1 * 20 / 8 / 16])


def test_a_batch_that_was_larger_than_the_epoch_stays_so():
    scheduler = BatchSizeScheduler(HalvingLR(sgd(0.1)), loader(8, 5), max_batch_size=1000)
    assert run(scheduler, 3) == [(8, [0.1]), (8, [0.05]), (8, [0.025])]


# Refusals


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda s: BatchSizeScheduler(s, loader(None), max_batch_size=9),
            TypeError,
            r"DataLoader\(\.\.\., batch_size=n\)",
        ),
        (lambda s: BatchSizeScheduler(s, [1, 2], max_batch_size=9), TypeError, "no batch sampler with a batch_size"),
        (lambda s: BatchSizeScheduler(s, loader(8), max_batch_size=7), ValueError, "max_batch_size must be at least 8"),
        (
            lambda s: BatchSizeScheduler(s, loader(8), max_batch_size=9, base_momentum=1.0),
            ValueError,
            "base_momentum must be at least 0 and below 1, not 1.0",
        ),
        (
            lambda s: BatchSizeScheduler(
                HalvingLR(fusedopt.Adagrad([parameter()])), loader(8), max_batch_size=9, base_momentum=0.9
            ),
            ValueError,
            "Adagrad has no momentum",
        ),
        (
            lambda s: BatchSizeScheduler(
                HalvingLR(sgd(0.1, momentum=1)), loader(8), max_batch_size=9, base_momentum=0.9
            ),
            ValueError,
            "a momentum of 1.0 has no batch size",
        ),
    ],
)
def test_refusals(make, error, message):
    schedule = HalvingLR(sgd(0.1))
    with pytest.raises(error, match=message):
        make(schedule)
    assert lrs(schedule.optimizer) == [0.1]


def test_another_state_is_refused_and_nothing_changes():
    scheduler = BatchSizeScheduler(HalvingLR(sgd(0.1)), loader(), max_batch_size=30)
    run(scheduler, 2)
    before = copy.deepcopy(scheduler.state_dict())
    with pytest.raises(ValueError, match="not a state of BatchSizeScheduler: schedule, base_batch_size"):
        scheduler.load_state_dict(HalvingLR(sgd(0.1)).state_dict())
    other = BatchSizeScheduler(HalvingLR(sgd(0.1, 0.1)), loader(), max_batch_size=30)
    with pytest.raises(ValueError, match=r"for 2 parameter group\(s\), the optimizer has 1"):
        scheduler.load_state_dict(other.state_dict())
    assert scheduler.state_dict() == before
    assert scheduler.batch_size == 30
