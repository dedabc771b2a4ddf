"""`install`: torch.optim's classes give instances of ours, and everything else is as it was."""

import copy
import functools
import inspect
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from ranks import environment
from torch import nn
from torch.optim import AdamW as IMPORTED_BEFORE

import fusedopt
from fusedopt.replacement import REPLACEMENTS, torchs_own
from fusedopt.training import make_optimizer
from fusedopt.training.optimizers import OPTIMIZERS

SIGNATURES = {cls: inspect.signature(cls) for cls in REPLACEMENTS}
replaced = pytest.mark.parametrize(("theirs", "ours"), REPLACEMENTS.items(), ids=lambda cls: cls.__name__)


class Own(torch.optim.AdamW):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr, weight_decay=0.25)


@pytest.fixture(autouse=True)
def _nothing_left_installed() -> Iterator[None]:
    yield
    fusedopt.uninstall()


def params(count: int = 1) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.randn(3)) for _ in range(count)]
    for p in made:
        p.grad = torch.randn(3)
    return made


def test_every_class_that_ours_derive_from_is_replaced():
    names = {name for name in fusedopt.__all__ if hasattr(torch.optim, name)}
    assert {cls.__name__ for cls in REPLACEMENTS} == names
    for theirs, ours in REPLACEMENTS.items():
        assert issubclass(ours, theirs)
        assert "__init__" in vars(theirs), "else uninstall() would leave one there"


@replaced
def test_constructing_gives_ours_with_all_arguments(theirs, ours):
    with fusedopt.installed():
        optimizer = theirs(params(), 0.5, maximize=True)
        assert type(optimizer) is ours
        assert isinstance(optimizer, theirs)
        assert type(functools.partial(theirs, lr=0.1)(params=params())) is ours
        assert inspect.signature(theirs) == SIGNATURES[theirs]
    assert (optimizer.defaults["lr"], optimizer.defaults["maximize"]) == (0.5, True)
    optimizer.step()
    assert [each.path for each in optimizer.explain()] == ["fused"]


def test_a_name_that_was_imported_before_is_served():
    with fusedopt.installed():
        assert type(IMPORTED_BEFORE(params())) is fusedopt.AdamW
    assert type(IMPORTED_BEFORE(params())) is torch.optim.AdamW


@replaced
def test_uninstall_restores_everything(theirs, ours):
    theirs(params())  # torch wraps a class's step() when it makes the first instance
    before = dict(vars(theirs))
    for _ in range(2):
        fusedopt.install()
        fusedopt.install()
        assert type(theirs(params())) is ours
        fusedopt.uninstall()
        assert dict(vars(theirs)) == before
        assert type(theirs(params())) is theirs
        fusedopt.uninstall()


def test_a_block_puts_back_what_was_there():
    with pytest.raises(KeyError), fusedopt.installed():
        raise KeyError
    assert type(torch.optim.SGD(params())) is torch.optim.SGD
    fusedopt.install()
    with fusedopt.installed():
        pass
    assert type(torch.optim.SGD(params())) is fusedopt.SGD, "install() came before the block"
    with fusedopt.installed(), fusedopt.installed():
        fusedopt.uninstall()
        assert type(torch.optim.SGD(params())) is fusedopt.SGD, "the block is not over"
    assert type(torch.optim.SGD(params())) is torch.optim.SGD


def test_a_wrapper_that_came_between_only_passes_on():
    before = torch.optim.Adam.__init__
    fusedopt.install()
    between, calls = torch.optim.Adam.__init__, []

    def wrapper(self, *args, **kwargs):
        calls.append(type(self))
        between(self, *args, **kwargs)

    torch.optim.Adam.__init__ = wrapper
    try:
        fusedopt.uninstall()
        assert torch.optim.Adam.__init__ is wrapper, "it is another's"
        assert type(torch.optim.Adam(params())) is torch.optim.Adam
        with fusedopt.installed():
            assert type(torch.optim.Adam(params(), lr=0.5)) is fusedopt.Adam
    finally:
        torch.optim.Adam.__init__ = before
    assert calls == [torch.optim.Adam, fusedopt.Adam]


def test_subclasses_stay_as_they_are():
    with fusedopt.installed():
        optimizer = Own(params(), 0.5)

        class Later(torch.optim.AdamW): ...

        assert type(Later(params())) is Later
        assert type(optimizer) is Own
        assert type(optimizer).__mro__[1] is torch.optim.AdamW
        assert optimizer.defaults["weight_decay"] == 0.25
    optimizer.step()


@replaced
def test_errors_are_torchs(theirs, ours):
    messages = []
    for _ in range(2):
        for arguments in ({"params": params(), "lr": -1.0}, {"params": []}, {"params": params(), "unknown": 1}, {}):
            with pytest.raises((ValueError, TypeError)) as error:
                theirs(**arguments)
            messages.append((error.type, str(error.value)))
        fusedopt.install()
    assert messages[:4] == messages[4:]


@replaced
def test_torchs_own_path_and_functions_are_untouched(theirs, ours):
    with fusedopt.installed():
        ours_here, native = theirs(params()), torchs_own(theirs, params())
        assert type(native) is theirs
        native.step()
        with fusedopt.native():
            ours_here.step()
        assert [each.path for each in ours_here.explain()] == ["torch"]
        if (name := theirs.__name__.lower()) in OPTIMIZERS:
            assert type(make_optimizer(f"torch.{name}", params())) is theirs


def test_copies_and_pickles_keep_their_class():
    theirs = torch.optim.AdamW(params())
    theirs.step()
    with fusedopt.installed():
        ours = torch.optim.AdamW(params())
        ours.step()
        for optimizer in (theirs, ours):
            for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
                assert type(twin) is type(optimizer)
                assert twin.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_pickles_and_checkpoints_load_where_nothing_is_installed(tmp_path):
    with fusedopt.installed():
        optimizer = torch.optim.AdamW(params())
    optimizer.step()
    torch.save(optimizer, tmp_path / "optimizer.pt")
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    script = """
        import sys, torch
        state = torch.load(sys.argv[1] + "/state.pt")
        fresh = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
        fresh.load_state_dict(state)
        assert "fusedopt" not in sys.modules
        whole = torch.load(sys.argv[1] + "/optimizer.pt", weights_only=False)
        import fusedopt
        assert type(whole) is fusedopt.AdamW
        whole.step()
        assert type(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])) is torch.optim.AdamW
    """
    command = [sys.executable, "-c", inspect.cleandoc(script), str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_in_a_spawned_process(tmp_path):
    script = """
        import fusedopt, torch, torch.multiprocessing as mp
        def work(rank, optimizer):
            assert type(optimizer) is fusedopt.AdamW
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.ones_like(p)
            optimizer.step()
            assert type(torch.optim.AdamW([torch.zeros(3)])) is torch.optim.AdamW, "it is not installed here"
            fusedopt.install()
            assert type(torch.optim.AdamW([torch.zeros(3)])) is fusedopt.AdamW
        if __name__ == "__main__":
            with fusedopt.installed():
                optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
                mp.spawn(work, (optimizer,), nprocs=1)
            print("done")
    """
    (tmp_path / "spawn.py").write_text(inspect.cleandoc(script))
    command = [sys.executable, str(tmp_path / "spawn.py")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def train(compiled: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=8)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    inputs = torch.randn(8, 5, 4)

    def plain_step(batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    def step(batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        scaler.scale(model(batch).square().mean()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()

    run = torch.compile(plain_step, backend="eager") if compiled else step
    for batch in inputs:
        run(batch)
        schedule.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("compiled", [False, True])
def test_training_with_schedule_and_scaler(compiled):
    expected = train(compiled)
    with fusedopt.installed():
        found = train(compiled)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_threads_that_install_and_construct():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    wrong: list[object] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for _ in range(200):
            with fusedopt.installed():
                if type(torch.optim.SGD(params())) is not fusedopt.SGD:
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert not wrong
    assert type(torch.optim.SGD(params())) is torch.optim.SGD


def test_checkpoints_go_both_ways():
    theirs = torch.optim.Adam(params(2))
    theirs.step()
    with fusedopt.installed():
        ours = torch.optim.Adam(params(2))
    ours.load_state_dict(theirs.state_dict())
    buffer = io.BytesIO()
    torch.save(ours.state_dict(), buffer)
    buffer.seek(0)
    theirs.load_state_dict(torch.load(buffer))
    assert [dict(group) for group in ours.state_dict()["param_groups"]] == theirs.state_dict()["param_groups"]
