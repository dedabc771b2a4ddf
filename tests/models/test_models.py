"""The networks and their parts, by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from vision import torchvision

from fusedopt.models import CNN2, MLP, MLP3, MODELS, DropBlock, LectureMLP, LeNet, ResNet9, ResNet18, make_model
from fusedopt.models.blocks import (
    ACTIVATIONS,
    INITIALIZATIONS,
    NORMALIZATIONS,
    initialize,
    make_activation,
    make_dropout,
    make_normalization,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def size_of(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("channels", "classes", "size"), [(1, 10, 28), (3, 3, 28), (3, 10, 32)])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_every_data_set(name, channels, classes, size):
    options = {"width": 4} if name.startswith("resnet") else {}
    model = make_model(name, channels=channels, classes=classes, size=size, **options).eval()
    images = torch.randn(4, channels, size, size)
    scores = model(images)
    assert scores.shape == (4, classes)
    # Each image is judged by itself, and the scores do depend on it.
    torch.testing.assert_close(model(images[1:2]), scores[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores[0], scores[1])


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name):
    options = {"width": 4} if name.startswith("resnet") else {}
    model = make_model(name, channels=3, classes=3, size=28, **options)
    F.cross_entropy(model(torch.randn(8, 3, 28, 28)), torch.arange(8) % 3).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (lambda: LeNet(1, 10), 44_426),
        (lambda: make_model("lenet-bn", channels=1, classes=10, size=28), 44_426 + 2 * (6 + 16 + 120 + 84)),
        (LectureMLP, 784 * 75 + 75 + 75 * 50 + 50 + 50 * 25 + 25 + 25 * 10 + 10),
        (lambda: MLP3(normalization="none"), 784 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10),
        (lambda: CNN2(5), (27 * 5 + 5) + (45 * 5 + 5) + (125 * 50 + 50) + (50 * 3 + 3)),
        (ResNet9, 6_573_130),
        (lambda: make_model("resnet9-small", channels=3, classes=10, size=32), 232_822),
        (ResNet18, 11_173_962),
    ],
    ids=["lenet", "lenet-bn", "lecture-mlp", "mlp3", "cnn2", "resnet9", "resnet9-small", "resnet18"],
)
def test_number_of_parameters(model, parameters):
    assert size_of(model()) == parameters


def test_the_homeworks_network_has_three_linear_layers_and_the_lectures_tanh():
    assert sum(isinstance(m, nn.Linear) for m in MLP3().modules()) == 3
    assert [m.out_features for m in LectureMLP().modules() if isinstance(m, nn.Linear)] == [75, 50, 25, 10]
    assert sum(isinstance(m, nn.Tanh) for m in LectureMLP().modules()) == 3


def test_the_scores_of_resnet9_are_scaled():
    model, images = ResNet9(width=8).eval(), torch.randn(4, 3, 32, 32)
    scaled = model(images)
    model.scale = 1.0
    torch.testing.assert_close(scaled, model(images) / 8)


def test_cnn2_is_the_books():
    """Written out with the book's layers: the same seed gives the same scores."""
    torch.manual_seed(13)
    model = CNN2(n_feature=5, p=0.3)
    torch.manual_seed(13)
    first, second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3)
    hidden, output = nn.Linear(125, 50), nn.Linear(50, 3)
    images = torch.randn(6, 3, 28, 28)

    def scores(p):
        features = F.max_pool2d(F.relu(second(F.max_pool2d(F.relu(first(images)), 2))), 2).flatten(1)
        return output(F.dropout(F.relu(hidden(F.dropout(features, p))), p))

    torch.testing.assert_close(model.eval()(images), scores(0.0))
    torch.manual_seed(1)
    trained = model.train()(images)
    torch.manual_seed(1)
    torch.testing.assert_close(trained, scores(0.3))
    assert not torch.allclose(trained, scores(0.0))
    assert list(model.state_dict()) == [
        f"{n}.{k}" for n in ("conv1", "conv2", "fc1", "fc2") for k in ("weight", "bias")
    ]


def test_resnet18_is_torchvisions_but_for_its_beginning():
    theirs = torchvision().models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    ours = ResNet18()
    shapes = [tuple(p.shape) for p in ours.parameters()]
    assert sorted(shapes) == sorted(tuple(p.shape) for p in theirs.parameters())
    # Their order of a block: convolutions, then its shortcut, as ours.
    states = list(theirs.state_dict().values())
    ours.load_state_dict(dict(zip(ours.state_dict(), states, strict=True)))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cnn2", "lenet"])
def test_images_that_are_too_small_are_refused(name):
    with pytest.raises(ValueError, match="takes images of at least"):
        make_model(name, channels=3, classes=3, size=8)


def test_unknown_names_list_the_names():
    with pytest.raises(ValueError, match=r"unknown model 'vgg'; choose one of lenet, .*resnet18"):
        make_model("vgg", channels=3, classes=3, size=28)
    with pytest.raises(ValueError, match="unknown activation 'swish'; choose from sigmoid"):
        make_activation("swish")
    with pytest.raises(ValueError, match="unknown normalization 'weight'; choose from none"):
        make_normalization("weight", 8, spatial=True)
    with pytest.raises(ValueError, match="unknown dropout 'spatial'; choose from dropout"):
        make_dropout("spatial", 0.1)
    with pytest.raises(ValueError, match="unknown initialization 'zeros'; choose from default"):
        initialize(nn.Linear(2, 2), "zeros")
    with pytest.raises(ValueError, match="needs the sizes"):
        MLP([784])
    with pytest.raises(ValueError, match="2 hidden layers need as many shares of dropout"):
        MLP([784, 20, 20, 10], dropout=[0.5])


X = torch.tensor([-8.0, -1.0, 0.5, 7.0], dtype=torch.float64)
FORMULAS = {
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "tanh": lambda x: 2 / (1 + (-2 * x).exp()) - 1,
    "relu": lambda x: x.clamp(min=0),
    "relu6": lambda x: x.clamp(0, 6),
    "leaky-relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "prelu": lambda x: torch.where(x > 0, x, 0.25 * x),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "silu": lambda x: x / (1 + (-x).exp()),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_its_formula(name):
    torch.testing.assert_close(make_activation(name).double()(X).detach(), FORMULAS[name](X))


@pytest.mark.parametrize(
    ("name", "axes"), [("batch", (0, 2, 3)), ("layer", (1, 2, 3)), ("instance", (2, 3)), ("group", None)]
)
def test_normalization_of_images_is_over_its_axes(name, axes):
    images = torch.randn(5, 16, 6, 6) * 3 + 2
    out = make_normalization(name, 16, spatial=True)(images)
    if axes is None:
        images, out, axes = images.view(5, 8, 2, 6, 6), out.view(5, 8, 2, 6, 6), (2, 3, 4)
    mean, variance = images.mean(axes, keepdim=True), images.var(axes, correction=0, keepdim=True)
    torch.testing.assert_close(out, (images - mean) / (variance + 1e-5).sqrt(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "axis"), [("batch", 0), ("layer", 1)])
def test_normalization_of_features(name, axis):
    out = make_normalization(name, 12, spatial=False)(torch.randn(50, 12) * 3 + 2)
    torch.testing.assert_close(out.mean(axis), torch.zeros_like(out.mean(axis)), rtol=0, atol=1e-5)


def test_normalizations_have_a_weight_and_a_bias_per_channel():
    for name in NORMALIZATIONS[1:]:
        assert size_of(make_normalization(name, 6, spatial=True)) == 12
    assert make_normalization("group", 6, spatial=True).num_groups == 2


def test_instance_normalization_without_pixels_is_refused():
    with pytest.raises(ValueError, match="instance normalization needs images"):
        MLP3(normalization="instance")


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", [ResNet9, ResNet18])
def test_options_of_the_residual_networks(kind, normalization):
    model = kind(width=8, activation="silu", normalization=normalization, dropout="dropblock", p=0.1)
    assert sum(isinstance(m, nn.SiLU) for m in model.modules()) == sum(
        isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules()
    )
    assert sum(isinstance(m, DropBlock) for m in model.modules()) == len(model.stages)
    images = torch.randn(4, 3, 32, 32)
    assert model(images).shape == (4, 10)
    assert not torch.equal(model(images), model(images))  # blocks are dropped
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("size", [(9, 9), (3, 5), (2, 2)])
def test_dropblock_is_torchvisions(size):
    drop_block2d = torchvision().ops.drop_block2d
    features = torch.randn(4, 6, *size)
    block = 3 if min(size) >= 3 else 1
    torch.manual_seed(3)
    ours = DropBlock(0.2, 3)(features)
    torch.manual_seed(3)
    torch.testing.assert_close(ours, drop_block2d(features, 0.2, block))
    assert (ours == 0).any()


def test_dropblock_drops_blocks_and_its_share():
    features = torch.ones(40, 10, 20, 20)
    dropped = DropBlock(0.1, 5)(features) == 0
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.02)
    inner = dropped[..., 1:-1, 1:-1]
    neighbours = dropped[..., 1:-1, 2:] | dropped[..., 1:-1, :-2]
    assert (inner & ~neighbours).sum() == 0  # none stands alone
    assert DropBlock(0.1, 5)(features).mean().item() == pytest.approx(1.0, abs=1e-4)
    assert DropBlock(0.1).eval()(features) is features
    assert "p=0.1, block_size=3" in repr(DropBlock())


@pytest.mark.parametrize(("p", "block_size", "message"), [(1.5, 3, "p must lie"), (0.1, 4, "must be odd")])
def test_dropblock_refuses(p, block_size, message):
    with pytest.raises(ValueError, match=message):
        DropBlock(p, block_size)


@pytest.mark.parametrize(
    ("name", "std"), [("normal", 0.01), ("xavier", (2 / 700) ** 0.5), ("kaiming", (2 / 400) ** 0.5)]
)
def test_initialization_has_its_standard_deviation(name, std):
    layer = nn.Linear(400, 300)
    initialize(nn.Sequential(layer), name)
    assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
    assert not layer.bias.any()


def test_orthogonal_and_default_initialization():
    layer = nn.Conv2d(4, 16, 3)
    before = layer.weight.clone()
    initialize(layer, "default")
    assert torch.equal(layer.weight, before)
    initialize(layer, "orthogonal")
    rows = layer.weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(16), rtol=0, atol=1e-5)
    assert set(INITIALIZATIONS) == {"default", "normal", "xavier", "kaiming", "orthogonal"}
