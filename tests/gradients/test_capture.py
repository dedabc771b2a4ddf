"""`fusedopt.capture`: what it records, what it leaves alone, and how much memory it takes."""

import sys

import pytest
import torch
from torch import nn

import fusedopt
from fusedopt import History, capture
from fusedopt.files import FileError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def make_model(device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(device)


def train(model, optimizer, steps, seen=None):
    """Trains, and keeps in `seen` by other means what a capture should see."""
    for i in range(steps):
        optimizer.zero_grad()
        inputs = torch.sin(torch.arange(12.0) + i).view(3, 4).to(next(model.parameters()).device)
        model(inputs).square().sum().backward()
        if seen is not None:
            seen.append({n: (p.grad.clone(), p.detach().clone()) for n, p in model.named_parameters()})
        optimizer.step()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cls", [fusedopt.SGD, fusedopt.AdamW, torch.optim.AdamW])
def test_records_what_each_step_is_given(cls, device):
    model, seen = make_model(device), []
    optimizer = cls(model.parameters(), lr=0.1)
    with capture(model) as history:
        train(model, optimizer, 5, seen)
    train(model, optimizer, 3)  # outside the block
    assert history.steps == [0, 1, 2, 3, 4]
    for name, _ in model.named_parameters():
        assert torch.equal(history.gradients[name], torch.stack([s[name][0].flatten() for s in seen]))
        assert torch.equal(history.parameters[name], torch.stack([s[name][1].flatten() for s in seen]))
    assert not torch.equal(history.parameters["0.weight"][0], history.parameters["0.weight"][4])


def test_the_run_is_not_changed():
    runs = []
    for watched in (False, True):
        model = make_model()
        optimizer = fusedopt.AdamW(model.parameters(), lr=0.1)
        state = torch.get_rng_state()
        if watched:
            with capture(model, max_values=3, max_records=2):
                train(model, optimizer, 5)
        else:
            train(model, optimizer, 5)
        assert torch.equal(torch.get_rng_state(), state)
        runs.append([p.detach() for p in model.parameters()])
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize(("layers", "names"), [(["2"], ["2.weight", "2.bias"]), ("0.bias", ["0.bias"]), (None, 4)])
def test_layers(layers, names):
    model = make_model()
    with capture(model, layers) as history:
        train(model, fusedopt.SGD(model.parameters(), lr=0.1), 1)
    assert (len(history.gradients) if names == 4 else list(history.gradients)) == names


@pytest.mark.parametrize(("gradients", "parameters"), [(True, False), (False, True)])
def test_one_kind_only(gradients, parameters):
    model = make_model()
    with capture(model, gradients=gradients, parameters=parameters) as history:
        train(model, fusedopt.SGD(model.parameters(), lr=0.1), 2)
    assert (bool(history.gradients), bool(history.parameters)) == (gradients, parameters)
    assert history.steps == [0, 1]


def test_every_and_thinning_out():
    model, seen = make_model(), []
    recording = capture(model, every=3, max_records=4)
    with recording as history:
        train(model, fusedopt.SGD(model.parameters(), lr=0.1), 40, seen)
    # 0 3 6 9 | 12: 0 6 12 18 | 24: 0 12 24 36
    assert history.steps == [0, 12, 24, 36]
    for row, step in enumerate(history.steps):
        assert torch.equal(history.parameters["0.weight"][row], seen[step]["0.weight"][1].flatten())
        assert torch.equal(history.gradients["2.bias"][row], seen[step]["2.bias"][0].flatten())


def test_memory_is_bounded():
    model = nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 1))
    optimizer = fusedopt.SGD(model.parameters(), lr=1e-3)
    with capture(model, max_records=8, max_values=64) as history:
        for i in range(50):
            model(torch.ones(1, 100)).sum().backward()
            optimizer.step()
            for rows in [*history.gradients.values(), *history.parameters.values()]:
                assert len(rows) == len(history.steps) <= 8
                assert rows.untyped_storage().nbytes() <= 4 * 8 * 64
            assert history.steps[-1] <= i
    assert history.steps[-1] >= 25


def test_large_tensors_are_sampled_evenly_and_always_at_the_same_elements():
    model = nn.Linear(1000, 30)
    with torch.no_grad():
        model.weight.copy_(torch.arange(30_000.0).view(30, 1000))
    with capture(model, max_values=100) as history:
        optimizer = fusedopt.SGD(model.parameters(), lr=0.0)
        model(torch.ones(1000)).sum().backward()
        optimizer.step()
        optimizer.step()
    first, second = history.parameters["weight"]
    assert torch.equal(first, second)
    assert (first // 300).tolist() == list(range(100))  # one from each of 100 equal parts
    assert len(set((first % 10).tolist())) == 10  # not a stride, which might follow a row or a column
    assert history.parameters["bias"].shape == (2, 30)


def test_parameters_without_gradient_are_nan():
    model = make_model()
    model[0].weight.requires_grad_(False)
    with capture(model) as history:
        train(model, fusedopt.SGD(model.parameters(), lr=0.1), 1, None)
    assert history.gradients["0.weight"].isnan().all()
    assert history.gradients["0.bias"].isfinite().all()
    assert history.parameters["0.weight"].isfinite().all()


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_a_scaler_are_unscaled(fused):
    def run(scale):
        model = make_model()
        optimizer = fusedopt.SGD(model.parameters(), lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        with capture(model) as history:
            scaler.scale(model(torch.ones(4)).sum()).backward()
            scaler.step(optimizer)
        return history.gradients["0.weight"]

    assert run(1.0).count_nonzero()
    torch.testing.assert_close(run(1024.0), run(1.0))


def test_sparse_channels_last_and_half_precision():
    model = nn.ModuleList([nn.Embedding(5, 2, sparse=True), nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)])
    before = model[1].bfloat16().weight.detach().clone()
    with capture(model) as history:
        model[0](torch.tensor([1, 1])).sum().backward()
        (model[1](torch.ones(1, 2, 4, 4).bfloat16()).sum()).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert history.gradients["0.weight"].tolist() == [[0, 0, 2, 2, 0, 0, 0, 0, 0, 0]]
    assert history.parameters["1.weight"].dtype == torch.float32
    torch.testing.assert_close(history.parameters["1.weight"][0], before.float().flatten())  # in logical order
    assert history.gradients["1.weight"].shape == (1, 54)


def test_other_models_are_not_recorded_and_other_loops_can_be():
    model, other = make_model(), make_model()
    recording = capture(model)
    with recording as history:
        train(other, fusedopt.SGD(other.parameters(), lr=0.1), 2)
        assert history.steps == []
        model(torch.ones(4)).sum().backward()
        recording.record()
    assert history.steps == [0]
    assert torch.equal(history.gradients["0.bias"][0], model[0].bias.grad)


def test_an_exception_ends_the_recording():
    model = make_model()
    with pytest.raises(KeyError), capture(model) as history:
        raise KeyError
    train(model, fusedopt.SGD(model.parameters(), lr=0.1), 1)
    assert history.steps == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ["1"]}, "no layer '1' with parameters; it has 0, 2"),
        ({"layers": ["nonsense"]}, "no layer 'nonsense'"),
        ({"every": 0}, "every must be at least 1"),
        ({"max_records": 3}, "even number"),
        ({"max_values": 0}, "max_values must be at least 1"),
        ({"gradients": False, "parameters": False}, "nothing to record"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        capture(make_model(), **arguments)


def test_lazy_and_empty_models_are_refused():
    with pytest.raises(ValueError, match="run one batch"):
        capture(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="no real floating-point parameters"):
        capture(nn.ReLU())


@pytest.fixture
def history():
    model = make_model()
    with capture(model) as history:
        train(model, fusedopt.AdamW(model.parameters(), lr=0.1), 6)
    return history


def test_save_and_load(history, tmp_path):
    path = tmp_path / "history.pt"
    history.save(path)
    assert path.stat().st_size < 40_000  # the records, not the memory for 200 of them
    loaded = History.load(path)
    assert loaded.steps == history.steps
    for kind in ("gradients", "parameters"):
        ours, theirs = getattr(loaded, kind), getattr(history, kind)
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [p.name for p in tmp_path.iterdir()] == ["history.pt"]


def test_load_refuses_what_is_not_a_history(history, tmp_path):
    path = tmp_path / "history.pt"
    torch.save({"steps": [1]}, path)
    with pytest.raises(FileError, match="not a fusedopt history"):
        History.load(path)
    history.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match="truncated or corrupt"):
        History.load(path)


def test_quantiles_pass_over_nan(history):
    history.gradients["0.bias"][2] = torch.nan
    quantiles = history.quantiles("gradients", "0.bias", (0.0, 0.5, 1.0))
    rows = history.gradients["0.bias"]
    assert quantiles.shape == (3, 6)
    assert torch.equal(quantiles[0, :2], rows.min(dim=1).values[:2])
    assert torch.equal(quantiles[2, 3:], rows.max(dim=1).values[3:])
    assert quantiles[:, 2].isnan().all()


def test_plot(history, tmp_path):
    figure = history.plot()
    axes = figure.get_axes()
    assert [a.get_ylabel() for a in axes] == ["0.weight", "", "2.weight", ""]
    assert [a.get_title() for a in axes[:2]] == ["gradients", "parameters"]
    medians = history.parameters["2.weight"].quantile(0.5, dim=1)
    assert torch.equal(torch.tensor(axes[3].lines[0].get_ydata()), medians)
    figure.savefig(tmp_path / "plot.png")
    assert len(history.plot(["2.bias"]).get_axes()) == 2
    with pytest.raises(ValueError, match="'5' was not recorded"):
        history.plot(["5"])
    with pytest.raises(ValueError, match="nothing was recorded"):
        History().plot()


def test_plot_without_matplotlib(history, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fusedopt\[examples\]'") as error:
        history.plot()
    assert error.value.name == "matplotlib"


def test_a_history_is_taken_over():
    def steps(recording, model, optimizer, count):
        with recording:
            for _ in range(count):
                model(torch.ones(3)).sum().backward()
                optimizer.step()

    def build():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    model, optimizer = build()
    straight = capture(model, max_records=6)
    steps(straight, model, optimizer, 11)
    model, optimizer = build()
    first = capture(model, max_records=6)
    steps(first, model, optimizer, 7)
    second = capture(model, max_records=6, history=first.history, step=5)  # two steps are taken again
    assert second.history.steps == [0, 2, 4]
    second.step = 7
    steps(second, model, optimizer, 4)
    assert second.history.steps == [0, 2, 4, 8, 10]
    assert straight.history.steps == [0, 2, 4, 6, 8, 10]
    rows = [0, 1, 2, 4, 5]
    for kind in ("gradients", "parameters"):
        expected = {name: values[rows] for name, values in getattr(straight.history, kind).items()}
        torch.testing.assert_close(getattr(second.history, kind), expected, rtol=0, atol=0)
    smaller = capture(model, max_records=2, history=straight.history, step=11)
    assert smaller.history.steps == [0, 8]
    assert len(smaller.history.parameters["weight"]) == 2
    assert capture(model, history=straight.history).history.steps == []
    with pytest.raises(ValueError, match=r"holds other parameters .* such as the gradients of weight"):
        capture(torch.nn.Linear(4, 2), history=straight.history, step=11)
