"""Batches on a device: resident or read by workers, augmented and standardized there."""

import pytest
import torch

from fusedopt.data import BatchLoader, BatchTransform, Normalize, compose, make_hands
from fusedopt.models import HandClassifier
from fusedopt.training import make_optimizer, seeded, train

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
]
NAMES = ["crop", "color-jitter", "cutmix"]


@pytest.fixture(scope="module")
def data():
    return make_hands(50, 10)


class OneByOne(torch.utils.data.Dataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def make(data, names=NAMES, dataset=None, **options):
    transform = BatchTransform(Normalize(data.train_images), compose(names, 3) if names else None)
    return BatchLoader(dataset or (data.train_images, data.train_labels), 16, transform, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", ["too large", "one by one", "workers"])
def test_resident_and_read_batches_are_the_same(data, device, how):
    order = torch.randperm(50)
    resident = make(data, device=device)
    options = {
        "too large": {"resident_bytes": data.train_images.numel() - 1, "workers": 0},
        "one by one": {"dataset": OneByOne(data.train_images, data.train_labels), "workers": 0},
        "workers": {"dataset": OneByOne(data.train_images, data.train_labels), "workers": 1},
    }[how]
    read = make(data, device=device, **options)
    assert resident.resident
    assert not read.resident
    state = torch.random.get_rng_state()
    batches = [list(loader.batches(order, seed=5)) for loader in (resident, read)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [len(targets) for _, targets in batches[0]] == [16, 16, 16, 2]
    for (images, targets), (others, other_targets) in zip(*batches, strict=True):
        assert images.device.type == device
        assert torch.equal(images, others)
        assert torch.equal(targets, other_targets)


def test_batches_are_augmented_in_0_to_1_and_then_standardized(data):
    order = torch.arange(50)
    (images, _), *_ = make(data, names=[]).batches(order)
    normalize = Normalize(data.train_images)
    torch.testing.assert_close(images, normalize(data.train_images[:16]))
    (flipped, labels), *_ = make(data, names=["flip"]).batches(order, seed=3)
    expected = data.train_images[:16].float()
    mirrored = torch.rand(16, generator=torch.Generator().manual_seed(3)) < 0.5
    expected[mirrored] = expected[mirrored].flip(-1)
    torch.testing.assert_close(flipped, normalize(expected), rtol=0, atol=1e-5)
    assert torch.equal(labels, data.train_labels[:16])


@pytest.mark.parametrize("names", [[], NAMES], ids=["plain", "augmented"])
@pytest.mark.parametrize("images_at_once", [1, 40, 50])
def test_batches_do_not_depend_on_what_is_gathered_at_once(data, monkeypatch, names, images_at_once):
    monkeypatch.setattr("fusedopt.data.loader._PART_BYTES", images_at_once * data.train_images[0].numel())
    order, loader = torch.randperm(50), make(data, names=names)
    generator = torch.Generator().manual_seed(5)
    for index, batch in zip(torch.split(order, 16), loader.batches(order, seed=5), strict=True):
        expected = loader.transform(data.train_images[index], data.train_labels[index], generator)
        assert all(map(torch.equal, batch, expected))


def test_seed_decides_the_augmentation(data):
    loader, order = make(data), torch.arange(50)
    first, again, other = (torch.cat([images for images, _ in loader.batches(order, seed)]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("images", "labels", "size", "message"),
    [
        (torch.zeros(4, 3, 2, 2), torch.zeros(4).long(), 2, "must be uint8"),
        (torch.zeros(4, 3, 2, 2).byte(), torch.zeros(3).long(), 2, "as many labels"),
        (torch.zeros(4, 3, 2, 2).byte(), torch.zeros(4).long(), 0, "batch size must be at least 1, not 0"),
    ],
)
def test_bad_sets_are_refused(data, images, labels, size, message):
    with pytest.raises(ValueError, match=message):
        BatchLoader((images, labels), size, BatchTransform(Normalize(data.train_images)))


class Seen(HandClassifier):
    """Keeps the images it was trained on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        if self.training:
            self.seen.append(images.detach().clone())
        return super().forward(images)


def test_training_sees_another_augmentation_each_epoch_and_resumes_it(data, tmp_path):
    def run(epochs, **options):
        model = seeded(Seen, 0)
        optimizer = make_optimizer("adamw", model.parameters())
        epochs = train(model, optimizer, data, epochs=epochs, augmentation=compose(NAMES, 3), **options)
        return model, [epoch.loss for epoch in epochs]

    straight, losses = run(3)
    run(1, checkpoint_dir=tmp_path)
    resumed, rest = run(3, checkpoint_dir=tmp_path, resume=True)
    assert rest == losses[1:]
    assert all(map(torch.equal, straight.seen[1:], resumed.seen))
    plain, _ = run(1, seed=1)
    assert not torch.equal(plain.seen[0], straight.seen[0])


def test_every_epoch_and_every_run_has_a_seed_of_its_own(data, monkeypatch):
    seeds = []
    original = BatchLoader.batches

    def spy(self, order, seed=0, sizes=None):
        seeds.append(seed)
        return original(self, order, seed, sizes)

    monkeypatch.setattr(BatchLoader, "batches", spy)
    for seed in (0, 1):
        model = seeded(HandClassifier, 0)
        list(train(model, torch.optim.SGD(model.parameters(), lr=0.1), data, epochs=3, seed=seed))
    assert len({*seeds}) == 6


def test_training_uses_the_loss_given(data):
    model = seeded(HandClassifier, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    (epoch,) = train(model, optimizer, data, epochs=1, loss_fn=lambda scores, targets: scores.sum() * 0 + 7)
    assert epoch.loss == 7


@pytest.mark.parametrize("device", DEVICES)
def test_training_runs_where_the_model_is(data, device):
    model = seeded(HandClassifier, 0).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    epochs = list(train(model, optimizer, data, epochs=15, batch_size=10, augmentation=compose(["flip"], 3)))
    assert epochs[-1].loss < 0.7 * epochs[0].loss
