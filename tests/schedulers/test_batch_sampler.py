"""Batch sizes of batch samplers, and of streams."""

from schedule_runs import sgd
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from fusedopt.schedulers import BatchSizeScheduler, HalvingLR


def test_a_batch_sampler_alone():
    sampler = BatchSampler(RandomSampler(range(12)), 2, drop_last=False)
    scheduler = BatchSizeScheduler(HalvingLR(sgd(0.1)), sampler, max_batch_size=4)
    assert {len(batch) for batch in sampler} == {2}
    scheduler.optimizer.step()
    scheduler.step()
    assert {len(batch) for batch in sampler} == {4}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(12))


def test_a_stream_has_no_end_that_limits_the_batch():
    data = DataLoader(Stream(), batch_size=2)
    scheduler = BatchSizeScheduler(HalvingLR(sgd(0.1)), data, max_batch_size=6)
    for size in (2, 4, 6):
        assert {len(batch) for batch in list(data)[: 12 // size]} == {size}
        scheduler.optimizer.step()
        scheduler.step()
