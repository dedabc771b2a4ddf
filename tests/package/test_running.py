"""`python -m fusedopt run`: scripts as they stand, in processes of their own."""

import inspect
import re
import subprocess
import sys

import command_line
import pytest
from ranks import environment, torchrun
from scripts_to_run import DDP, LIBRARY, MNIST, SCALER, USES_LIBRARY

from fusedopt import running


def python(folder, *arguments, code=0):
    """Runs Python in the folder, and returns its standard output and errors."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def scripts(tmp_path):
    """A function that writes scripts, and the folder they are in."""

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(inspect.cleandoc(text) + "\n")
        return tmp_path

    return write


def without_times(errors):
    return re.sub(r" in [\d.]+ m?s, [\d.]+% of the time from the first to the last \([\d.]+ m?s\)", " TIMES", errors)


def test_the_mnist_example(scripts):
    folder = scripts(main=MNIST)
    arguments = ("main.py", "--epochs", "2", "--lr", "0.01", "--save-model")
    native, _ = python(folder, *arguments)
    ours, errors = python(folder, "-m", "fusedopt", "run", *arguments)
    assert native.splitlines()[-1] == "torch"
    assert ours.splitlines()[-1] == "fusedopt"
    assert ours.splitlines()[:-1] == native.splitlines()[:-1]
    first, second, third = without_times(errors).splitlines()
    assert first == "fusedopt run: 1 x torch.optim.AdamW, replaced by fusedopt.AdamW"
    assert second.startswith("fusedopt run:   4 parameters fused: AdamW, CPU, ")
    assert third == "fusedopt run:   8 steps TIMES"


def test_a_script_with_a_grad_scaler(scripts):
    _, errors = python(scripts(amp=SCALER), "-m", "fusedopt", "run", "amp.py")
    assert "1 x torch.optim.SGD, replaced by fusedopt.SGD" in errors
    assert "2 parameters fused: SGD" in errors
    assert "  5 steps in " in errors, "torch's GradScaler does not call step() after an overflow"


def test_a_library_that_makes_the_optimizer(scripts):
    _, errors = python(scripts(library=LIBRARY, train=USES_LIBRARY), "-m", "fusedopt", "run", "train.py")
    lines = [line.removeprefix("fusedopt run: ") for line in without_times(errors).splitlines()]
    isa = re.search(r"CPU, \w+", errors)[0]
    assert lines == [
        "1 x torch.optim.AdamW, replaced by fusedopt.AdamW",
        f"  1 parameter fused: AdamW, {isa}",
        "  1 parameter not updated: no gradient",
        "  6 steps TIMES",
        "1 x torch.optim.SGD, replaced by fusedopt.SGD",
        "  1 parameter by torch's implementation: the gradient is sparse",
        "  3 steps TIMES",
        "1 x torch.optim.Adam, replaced by fusedopt.Adam",
        "  no step",
        "1 x library.Decayed, not replaced: a subclass of torch.optim.AdamW",
        "  3 steps TIMES",
    ]


def test_two_processes_under_torchrun(scripts):
    folder = scripts(train=DDP)
    code, _, errors = torchrun(2, "-m", "fusedopt", "run", "train.py", "--flag", "3", cwd=folder)
    assert code == 0, errors
    for rank in range(2):
        assert (folder / f"{rank}.txt").read_text() == "['--flag', '3'] 2\n"
    reports = [line for line in errors.splitlines() if "replaced by" in line]
    assert reports == ["fusedopt run, rank 0: 1 x torch.optim.AdamW, replaced by fusedopt.AdamW"]


def test_processes_that_a_script_spawns(scripts):
    text = """
        import sys
        import torch
        import torch.multiprocessing as mp

        def work(rank):
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))])
            with open(f"{rank}.txt", "w") as file:
                print(type(optimizer).__module__, sys.argv[1:], file=file)

        if __name__ == "__main__":
            mp.spawn(work, nprocs=1)
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))])
    """
    folder = scripts(script=text)
    for target in (["script.py"], ["-m", "script"]):
        _, errors = python(folder, "-m", "fusedopt", "run", *target, "--flag")
        assert (folder / "0.txt").read_text() == "torch.optim.sgd ['--flag']\n"
        assert "1 x torch.optim.SGD, replaced by fusedopt.SGD" in errors


@pytest.mark.one_torch
def test_what_a_script_sees_of_its_start(scripts):
    text = """
        import sys, __main__
        print(sys.argv, sys.path[0], __name__, __file__, __main__.__file__, vars(__main__) is globals())
        print(__cached__)
    """
    folder = scripts(script=text)
    (folder / "pack").mkdir()
    (folder / "pack" / "__init__.py").write_text("")
    (folder / "pack" / "script.py").write_text(inspect.cleandoc(text))
    (folder / "pack" / "__main__.py").write_text(inspect.cleandoc(text))
    for target in (["script.py"], ["pack/script.py"], ["-m", "script"], ["-m", "pack.script"], ["-m", "pack"]):
        arguments = [*target, "--help", "-m", "run"]
        expected, _ = python(folder, *arguments)
        found, errors = python(folder, "-m", "fusedopt", "run", *arguments)
        assert found == expected
        assert errors == (
            "fusedopt run: no optimizer was made in this process that fusedopt replaces, and none made a step\n"
        )


@pytest.mark.one_torch
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("raise SystemExit(7)", 7),
        ("import sys; sys.exit('words')", 1),
        ("def inner():\n    raise ValueError('of the script')\n\ninner()", 1),
        ("def inner(:", 1),
        ("import signal; raise KeyboardInterrupt", -2),
        ("import os, torch; os._exit(5)", 5),
    ],
    ids=["exit", "exit with words", "error", "syntax error", "ctrl-c", "at once"],
)
def test_exit_codes_and_tracebacks_are_the_scripts(scripts, text, code):
    folder = scripts(script=text)
    output, expected = python(folder, "script.py", code=code)
    found, errors = python(folder, "-m", "fusedopt", "run", "script.py", code=code)
    kept = [line for line in errors.splitlines() if not line.startswith("fusedopt run: ")]
    assert found == output
    assert kept == expected.splitlines()


@pytest.mark.one_torch
def test_a_traceback_of_a_module_begins_there(scripts):
    folder = scripts(script="raise ValueError('of the module')")
    _, expected = python(folder, "-m", "script", code=1)
    _, errors = python(folder, "-m", "fusedopt", "run", "-m", "script", code=1)
    kept = [line for line in errors.splitlines() if not line.startswith("fusedopt run: ")]
    assert kept == [line for line in expected.splitlines() if "<frozen runpy>" not in line]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Usage: fusedopt run SCRIPT"),
        (["--fast", "x.py"], 2, "fusedopt run: no option --fast; see fusedopt run --help"),
        (["-m"], 2, "fusedopt run: -m needs a module"),
        (["nowhere.py"], 2, "fusedopt run: there is no file nowhere.py"),
        (["-m", "nowhere.at.all"], 1, "fusedopt run: there is no module nowhere.at.all"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    for name in ("argv", "path"):
        monkeypatch.setattr(sys, name, [*getattr(sys, name)])
    with pytest.raises(SystemExit) as end:
        running.main(arguments)
    assert end.value.code == code
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(message)


@pytest.mark.one_torch
def test_help_without_the_extras(tmp_path, scripts):
    """The command needs nothing but torch; the others need typer."""
    folder = scripts(typer="raise ModuleNotFoundError('typer')", script="print('ran')")
    output, _ = python(folder, "-m", "fusedopt", "run", "--help")
    assert output.startswith("Usage: fusedopt run SCRIPT")
    assert python(folder, "-m", "fusedopt", "run", "script.py")[0] == "ran\n"


def test_the_command_line_knows_it(scripts, monkeypatch, capsys):
    folder = scripts(script="import sys; print(sys.argv[1:]); raise KeyboardInterrupt")
    assert "Run a script with torch.optim's classes replaced" in command_line.plain(command_line.run("--help").output)
    command = [sys.executable, "-c", "from fusedopt.cli import main; main()", "run", "script.py", "--help", "-x"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (-2, "['--help', '-x']\n"), "Python's own way to end by Ctrl-C"
