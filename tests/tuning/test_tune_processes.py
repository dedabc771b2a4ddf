"""`fusedopt tune` on several processes that are interrupted or killed."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

pytest.importorskip("optuna", reason="optuna is not installed")
pytestmark = pytest.mark.one_torch

SCRIPT = """
import os, signal
from concurrent.futures import ProcessPoolExecutor
from fusedopt import cli, data, tasks
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background takes away
if __name__ == "__main__":
    hands = data.make_hands(90, 3)
    tasks.TASKS["hands"] = tasks.Task(lambda folder, notify: hands, "lenet")
    {more}
    cli.main()
"""


@pytest.fixture
def start(tmp_path):
    """Starts a search without an end on two processes, which are gone when the test is over."""
    started = []

    def start(more="pass"):
        arguments = ["tune", "hands", "--epochs", "1", "--method", "random", "--study", tmp_path / "study.db"]
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(more=more), *arguments, "--processes", "2", "--trials", "9999"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_ctrl_c_on_two_processes_keeps_what_is_finished(start):
    process = start()
    assert process.stdout.readline().startswith("trial ")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    (line,) = errors.splitlines()
    assert re.match(r"fusedopt: stopped after \d+ finished trials; the same command goes on with", line)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "before they are ready"])
def test_processes_end_with_the_one_that_started_them(start, how):
    if how == "before they are ready":
        more = """submit = ProcessPoolExecutor.submit
    def once(*arguments):
        submit(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    ProcessPoolExecutor.submit = once"""
        process, code = start(more), -signal.SIGKILL
    else:
        process, code = start(), -signal.Signals[how]
        assert process.stdout.readline().startswith("trial ")
        os.kill(process.pid, -code)
    process.communicate(timeout=60)  # ends when nobody is left who could print
    assert process.returncode == code
