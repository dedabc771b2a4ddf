"""The drawn Rock-Paper-Scissors hands."""

import pytest
import torch

from fusedopt.data import Normalize, draw_hands, make_hands
from fusedopt.data.hands import CLASSES, _pose, _Random
from fusedopt.models import HandClassifier
from fusedopt.training import accuracy, make_optimizer, seeded, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    return make_hands(1500, 300, seed=1)


def draw(labels, seed=0):
    return draw_hands(torch.as_tensor(labels), torch.Generator().manual_seed(seed))


def test_shapes_and_types(data):
    assert data.classes == ("paper", "rock", "scissors")
    assert data.train_images.shape == (1500, 3, 28, 28)
    assert data.test_images.shape == (300, 3, 28, 28)
    assert data.train_images.dtype == data.test_images.dtype == torch.uint8
    assert data.train_labels.dtype == torch.int64


def test_same_seed_same_images():
    first, second = make_hands(70, 10, seed=3), make_hands(70, 10, seed=3)
    assert torch.equal(first.train_images, second.train_images)
    assert torch.equal(first.train_labels, second.train_labels)
    assert torch.equal(first.test_images, second.test_images)


def test_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    make_hands(3, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_image_is_another():
    sets = [make_hands(60, 60, seed=seed) for seed in (0, 1, 2)]
    images = torch.cat([images for data in sets for images in (data.train_images, data.test_images)])
    assert len(images.flatten(1).unique(dim=0)) == 6 * 60


def test_test_images_do_not_depend_on_the_number_of_training_images():
    assert torch.equal(make_hands(3, 30).test_images, make_hands(90, 30).test_images)


@pytest.mark.parametrize("count", [0, 1, 3, 64, 65, 200])
def test_classes_are_balanced(count):
    labels = make_hands(count, 0).train_labels
    counts = labels.bincount(minlength=3)
    assert len(labels) == count
    assert counts.max() - counts.min() <= 1


def test_labels_are_shuffled(data):
    assert not torch.equal(data.train_labels, torch.arange(1500) % 3)


def test_images_show_a_hand():
    # The same generator draws the same background, light and place for each pose: only the hand differs.
    paper, rock, scissors = (draw([label] * 20).float() for label in range(3))
    for one, other in ((paper, rock), (rock, scissors), (scissors, paper)):
        changed = ((one - other).abs().amax(dim=1) > 25).float().mean(dim=(1, 2))
        assert changed.min() > 0.03
        assert changed.max() < 0.7


@pytest.mark.parametrize(("label", "fingers"), [(0, 4), (1, 0), (2, 2)], ids=CLASSES)
def test_pose_stretches_the_right_number_of_fingers(label, fingers):
    labels = torch.full((50,), label)
    parts = _pose(labels, _Random(50, torch.Generator().manual_seed(0)))
    stretched = sum((part.end[:, 1] > 0.6).int() for part in parts[-6:-2])  # the outer bones; the thumb comes last
    assert torch.equal(stretched, torch.full((50,), fingers))


@pytest.mark.parametrize("label", [-1, 3])
def test_unknown_label_is_refused(label):
    with pytest.raises(ValueError, match="paper, rock, scissors"):
        draw([0, label])


def learn(model, data, epochs):
    optimizer = make_optimizer("torch.adamw", model.parameters(), lr=2e-3)
    return list(train(model, optimizer, data, epochs=epochs, batch_size=32))[-1].accuracy


def test_convolutions_learn_what_a_linear_model_cannot(data):
    linear = seeded(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 28 * 28, 3)), 0)
    network = seeded(HandClassifier, 0)
    assert learn(linear, data, epochs=6) < 0.85
    assert learn(network, data, epochs=6) > 0.93
    predicted_well = [
        accuracy(network, data.test_images[here], data.test_labels[here], Normalize(data.train_images))
        for here in (data.test_labels == label for label in range(len(CLASSES)))
    ]
    assert min(predicted_well) > 0.88
