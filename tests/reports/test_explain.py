"""What a network looked at: the maps against the formulas, the pictures, the command."""

from __future__ import annotations

import struct

import pytest
import torch
from command_line import plain
from run_folders import config_of, make_run, network, run_command, small_hands
from torch import nn
from torch.nn import functional as F

from fusedopt.data import Normalize
from fusedopt.models import HandClassifier, ResNet9
from fusedopt.tasks import TASKS, Task
from fusedopt.training import RunFolder, predict

pytest.importorskip("captum", reason="captum is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from fusedopt.reports import attribute, attribute_wrong, evaluate, layers, pick_wrong, plot_activations, plot_filters
from fusedopt.reports.layers import convolutions, feature_maps, find_layer

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def data():
    return small_hands(120)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    return make_run(tmp_path_factory.mktemp("finished") / "run", data, epochs=1)


@pytest.fixture
def run(tmp_path, data, monkeypatch):
    """An untrained network in a run, wrong in most cases."""
    monkeypatch.setitem(TASKS, "hands", Task(lambda folder, notify: data, HandClassifier))
    run = RunFolder.create(tmp_path, config_of(data))
    run.save_model(network(run.config))
    return run


def upright(axes):
    """The pictures of axes as tensors."""
    return [torch.as_tensor(image.get_array().filled()) for image in axes.images]


def test_grad_cam_is_that_of_the_paper(data):
    model = HandClassifier().eval()
    images, targets = data.test_images[:4] / 255, torch.tensor([0, 1, 2, 0])
    title, maps = attribute(model, images, targets)
    assert title == "Grad-CAM, layer conv2"

    features = model.conv2(model.pool(F.relu(model.conv1(images)))).detach().requires_grad_()
    hidden = F.relu(model.fc1(model.pool(F.relu(features)).flatten(1)))
    scores = model.fc3(F.relu(model.fc2(hidden)))
    (gradients,) = torch.autograd.grad(scores[range(4), targets].sum(), features)
    cam = F.relu((gradients.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1, keepdim=True))
    cam = F.interpolate(cam, size=(28, 28), mode="bilinear")
    largest = cam.amax(dim=(1, 2, 3), keepdim=True)
    assert (largest > 0).sum() >= 2
    torch.testing.assert_close(maps, (cam / largest.clamp(min=1e-30)).detach())
    assert all(p.grad is None for p in model.parameters())


def test_networks_without_convolutions_get_input_gradients(data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 3))
    images, targets = data.test_images[:2] / 255, torch.tensor([2, 0])
    title, maps = attribute(model, images, targets)
    assert title == "input gradients"
    expected = model[1].weight[targets].reshape(2, 3, 28, 28).abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(maps, (expected / expected.amax(dim=(1, 2, 3), keepdim=True)).detach())


def test_layers_are_found_by_name():
    model = HandClassifier()
    assert convolutions(model) == ["conv1", "conv2"]
    assert find_layer(model, "conv1") is model.conv1
    with pytest.raises(ValueError, match=r"the network has no layer 'conv3'; choose one of conv1, conv2$"):
        find_layer(model, "conv3")
    with pytest.raises(ValueError, match=r"has no layer 'conv'; choose one of 0, 1$"):
        find_layer(nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), "conv")
    assert convolutions(ResNet9(width=2))[-1].startswith("stages.2.")


def test_layers_without_feature_maps_are_refused(data):
    model, images = HandClassifier().eval(), data.test_images[:2] / 255
    assert torch.equal(feature_maps(model, "conv1", images), model.conv1(images))
    with pytest.raises(ValueError, match="layer 'pool' runs several times; choose a convolution"):
        feature_maps(model, "pool", images)
    with pytest.raises(ValueError, match="layer 'fc1' gives no feature map"):
        attribute(model, images, torch.tensor([0, 0]), "fc1")
    assert not any(module._forward_hooks for module in model.modules())


def test_misclassified_images_are_drawn_by_the_seed(finished, data):
    evaluation = evaluate(finished.load_model(), data, finished.normalize)
    wrong = evaluation.wrong.tolist()
    assert len(wrong) > 30
    assert wrong == [i for i in range(120) if evaluation.predicted[i] != data.test_labels[i]]
    picks = [pick_wrong(evaluation, 25, seed).tolist() for seed in (0, 0, 1)]
    assert picks[0] == picks[1] != picks[2]
    assert len({*picks[0]}) == 25
    assert {*picks[0]} <= {*wrong}
    assert sorted(pick_wrong(evaluation, 1000).tolist()) == wrong


def test_each_image_stands_beside_its_map(finished, data):
    model, normalize = finished.load_model(), finished.normalize
    evaluation = evaluate(model, data, normalize)
    figure = attribute_wrong(model, data, normalize, evaluation, count=7, seed=3).plot()
    chosen = pick_wrong(evaluation, 7, 3)
    labels = predict(model, data.test_images, normalize)[chosen]
    _, maps = attribute(model, normalize(data.test_images[chosen]), labels)
    cells = [axes for axes in figure.axes if axes.images]
    assert len(cells) == 7
    for axes, index, guess, heat in zip(cells, chosen.tolist(), labels.tolist(), maps, strict=True):
        assert axes.get_title() == f"{data.classes[guess]}, is {data.classes[data.test_labels[index]]}"
        photograph, _, overlay = upright(axes)
        assert torch.equal(photograph, data.test_images[index].permute(1, 2, 0))
        torch.testing.assert_close(overlay, heat[0])
    assert f"7 of {len(evaluation.wrong)} misclassified images" in figure.get_suptitle()


def test_filters_are_the_weights(finished):
    model = finished.load_model()
    weights, deeper = model.conv1.weight.detach(), model.conv2.weight.detach()
    first = [axes for axes in plot_filters(model, 3, 28).axes if axes.images]
    for axes, colours in zip(first, weights, strict=True):  # grey is 0
        torch.testing.assert_close(upright(axes)[0], (colours / (2 * weights.abs().max()) + 0.5).permute(1, 2, 0))
    second = [axes for axes in plot_filters(model, 3, 28, "conv2").axes if axes.images]
    assert len(second) == 16 * 6
    torch.testing.assert_close(upright(second[7])[0], deeper[1, 1])
    largest = float(deeper.abs().max())
    assert second[7].images[0].get_clim() == (-largest, largest)


def test_linear_layers_have_filters_where_they_take_the_pixels():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 2))
    pictures = [axes for axes in plot_filters(linear, 1, 4).axes if axes.images]
    torch.testing.assert_close(upright(pictures[4])[0], linear[1].weight.detach()[4].reshape(4, 4))
    with pytest.raises(ValueError, match="layer '2' has no filters"):
        plot_filters(linear, 1, 4, "2")
    with pytest.raises(ValueError, match="no convolution and no linear layer"):
        plot_filters(nn.Flatten(), 1, 4)


def test_layers_that_are_all_zero_are_drawn(data):
    model = HandClassifier()
    nn.init.zeros_(model.conv1.weight)
    nn.init.zeros_(model.conv1.bias)
    filters = plot_filters(model, 3, 28)
    assert all((picture == 0.5).all() for axes in filters.axes for picture in upright(axes))
    activations = plot_activations(model, data, Normalize(data.train_images), layer="conv1")
    assert not upright(activations.axes[1])[0].any()


def test_large_layers_are_drawn_in_part(monkeypatch):
    monkeypatch.setattr(layers, "_MOST", 2)
    figure = plot_filters(nn.Sequential(nn.Conv2d(5, 4, 1)), 5, 4)
    assert len([axes for axes in figure.axes if axes.images]) == 2 * 2
    assert figure.get_suptitle().startswith("2 of 4 filters, 2 of their 5 channels of layer 0,")
    figure = plot_filters(nn.Sequential(nn.Conv2d(1, 9, 2)), 1, 4)
    assert len([axes for axes in figure.axes if axes.images]) == 4 * 2
    assert figure.get_suptitle().startswith("8 of 9 filters of layer 0,")


def test_activations_are_those_of_one_image_per_class(finished, data):
    model, normalize = finished.load_model(), finished.normalize
    figure = plot_activations(model, data, normalize, seed=5, layer="conv1")
    rows = [figure.axes[start : start + 7] for start in (0, 7, 14)]
    for label, row in enumerate(rows):
        assert row[0].texts[0].get_text() == data.classes[label]
        photograph = (upright(row[0])[0] * 255).round().to(torch.uint8).permute(2, 0, 1)
        (index,) = [i for i in range(120) if torch.equal(data.test_images[i], photograph)]
        assert data.test_labels[index] == label
        maps = feature_maps(model, "conv1", normalize(photograph[None]))[0]
        for axes, channel in zip(row[1:], maps, strict=True):
            torch.testing.assert_close(upright(axes)[0], channel, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no convolution and no linear layer"):
        plot_activations(nn.Flatten(), data, normalize)
    with pytest.raises(ValueError, match="layer '0' gives no channels; choose a convolution or a linear layer"):
        plot_activations(nn.Sequential(nn.Unflatten(1, (1, 3))), data, normalize, layer="0")


def test_units_are_drawn_where_there_is_no_convolution(data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(2352, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).eval()
    normalize = Normalize(data.train_images)
    figure = plot_activations(model, data, normalize)
    assert figure.get_suptitle() == "Activations of layer 1, 5 units"
    photograph = (upright(figure.axes[0])[0] * 255).round().to(torch.uint8).permute(2, 0, 1)
    drawn = [upright(axes)[0].item() for axes in figure.axes[1:6]]
    assert drawn == pytest.approx(model[1](model[0](normalize(photograph[None])))[0].tolist(), rel=1e-4, abs=1e-5)
    assert plot_activations(model, data, normalize, layer="3").get_suptitle() == "Activations of layer 3, 3 units"


def test_command_draws_what_there_is_of_a_network_without_convolutions(tmp_path, data, monkeypatch):
    monkeypatch.setitem(TASKS, "hands", Task(lambda folder, notify: data, "mlp3"))
    folder = make_run(tmp_path / "mlp", data, model="mlp3", epochs=1).folder
    output = run_command("explain", folder, "--filters", "--activations").stdout
    assert output.splitlines()[-2:] == [str(folder / "filters.png"), str(folder / "activations.png")]
    run_command("report", folder)  # which draws them anew
    assert (folder / "activations.png").exists()


def test_command_draws_into_the_run(run):
    output = run_command("explain", run.folder, "--filters", "--activations", "--images", 4).stdout
    names = ("grad-cam.png", "filters.png", "activations.png")
    assert output.splitlines() == [str(run.folder / name) for name in names]
    for name in names:
        content = (run.folder / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert struct.unpack(">I", content[16:20])[0] > 400
    before = (run.folder / "grad-cam.png").read_bytes()
    run_command("explain", run.folder, "--images", 4, "--layer", "conv1")
    assert (run.folder / "grad-cam-conv1.png").read_bytes() != before
    run_command("explain", run.folder, "--images", 4, "--seed", 1)
    other = (run.folder / "grad-cam.png").read_bytes()
    run_command("explain", run.folder, "--images", 4)
    assert other != before == (run.folder / "grad-cam.png").read_bytes()


def test_command_names_what_is_wrong(run, data):
    message = plain(run_command("explain", run.folder, "--layer", "conv9", "--activations", code=2).stderr)
    assert "the network has no layer 'conv9'; choose one of conv1, conv2" in message
    assert "gives no feature map" in plain(run_command("explain", run.folder, "--layer", "fc2", code=2).stderr)
    assert not list(run.folder.glob("*.png"))
    data.test_labels.copy_(predict(run.load_model(), data.test_images, run.normalize))
    output = run_command("explain", run.folder).stdout
    assert output == "no test image of hands is misclassified, so there is nothing to explain\n"
