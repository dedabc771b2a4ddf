"""Kills training processes with SIGKILL and resumes them; a program of its own, so that it can fork.

    python tests/kill_and_resume.py random FOLDER SEED   # at random moments, 10 times each run
    python tests/kill_and_resume.py points FOLDER        # at every call of a save to the system, in turn

torch is imported once, before the forks and before it starts any threads. Prints one line of JSON per run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from runs import OPTIMIZERS, Run

KILLS = 10
STEPS = 200  # more than 10 lives reach, so that every kill meets a process that trains
COMBINATIONS = [
    ("sgd", "one-cycle"),
    ("sgd-momentum", "cosine"),
    ("sgd-classic", "linear"),
    ("delta-bar-delta", "exponential"),
    ("rmsprop", "warm-restarts"),
    ("adagrad", "sequential"),
    ("adam", "plateau"),
    ("adamw", "cyclic"),
    ("lamb", "chained"),
    ("adamax", "one-cycle"),
    ("adadelta", "linear"),
    ("radam", "cosine"),
    ("nadam", "cyclic"),
    ("asgd", "one-cycle"),
    ("rprop", "exponential"),
    ("lion", "chained"),
    ("lars", "cyclic"),
    ("swats", "cosine"),
    ("swats-switch", "cosine"),
    ("sgd-float16-masters-average", "one-cycle"),
    ("adam-bfloat16-by-chance", "cosine"),
    ("lamb-bfloat16-masters", "linear"),
    ("adamw-bfloat16-states", "cyclic"),
    ("adamw-8-bits-by-chance", "one-cycle"),
    ("swats-8-bits", "chained"),
]
COMBINATIONS += [(name, "cosine") for name in OPTIMIZERS if name not in dict(COMBINATIONS)]


def fork(work: Callable[[int], None]) -> tuple[int, int]:
    """Runs `work` in a child, with the end of a pipe to write to; returns the child's id and the end to read."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        code = 1
        try:
            work(write_end)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)  # whatever happens: a child never runs on in the parent's code
    os.close(write_end)
    return child, read_end


def finish(work: Callable[[int], None]) -> str:
    """Runs `work` in a child to its end, and returns what it wrote."""
    child, read_end = fork(work)
    with os.fdopen(read_end) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {status}"
    return text


def resume(names: tuple[str, str], folder: Path, until: int) -> str:
    """Resumes a run, trains on, and returns its digest."""

    def work(pipe: int) -> None:
        run = Run(*names, folder)
        run.load()
        run.train(until)
        os.write(pipe, run.digest().encode())

    return finish(work)


def kill_at_random(names: tuple[str, str], folder: Path, moments: random.Random) -> dict[str, Any]:
    def train(pipe: int) -> None:
        run = Run(*names, folder)
        run.load()
        os.write(pipe, b".")
        run.train(STEPS, lambda: os.write(pipe, b"."), save=True)

    reached, torn, step_seconds = [], 0, 0.0
    for _ in range(KILLS):
        child, read_end = fork(train)
        wait = moments.randrange(1, 8)
        for _ in range(wait):
            start = time.perf_counter()
            assert os.read(read_end, 1), "the child ended early"
            step_seconds = time.perf_counter() - start
        time.sleep(moments.uniform(0, 1.5 * step_seconds))  # anywhere in the step that follows and its save
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(read_end)
        assert os.WIFSIGNALED(status), f"the child ended by itself with status {status}"
        torn += any(folder.glob("*.partial")) or any(folder.glob(".*.partial"))
        reached.append(Run(*names, folder).checkpoint.load().step)
    until = reached[-1] + 5
    return {
        "run": "+".join(names),
        "reached": reached,
        "in the middle of a save": torn,
        "resumed": resume(names, folder, until),
        "uninterrupted": resume(names, folder.with_name("none"), until),
    }


def kill_at_points(folder: Path) -> None:
    names = COMBINATIONS[0]
    start = folder / "start"

    def begin(pipe: int) -> None:
        Run(*names, start).train(3, save=True)

    finish(begin)
    expected = resume(names, folder / "none", 6)
    point = 0
    while True:
        copy = folder / f"point-{point}"
        shutil.copytree(start, copy)

        def die(pipe: int, copy: Path = copy, point: int = point) -> None:
            run = Run(*names, copy)
            run.load()
            run.train(4)
            kill_at_call(point)
            run.checkpoint.save(epoch=0, step=4, metric=run.step)

        child, read_end = fork(die)
        _, status = os.waitpid(child, 0)
        os.close(read_end)
        if not os.WIFSIGNALED(status):
            break
        left = sorted(path.name for path in copy.iterdir())
        position = Run(*names, copy).checkpoint.load().step
        line = {"point": point, "left": left, "position": position, "equal": resume(names, copy, 6) == expected}
        print(json.dumps(line), flush=True)
        point += 1


def kill_at_call(point: int) -> None:
    """Lets this process die at the given call to the system, a write half done, any other either side of it."""
    calls = 0

    def deadly(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 2
            if calls - 2 == point:
                if name == "write":
                    original(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            if calls - 1 == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in ("open", "write", "fsync", "replace", "unlink"):
        setattr(os, name, deadly(name, getattr(os, name)))


def main() -> None:
    torch.set_num_threads(1)
    mode, folder = sys.argv[1], Path(sys.argv[2])
    for names in COMBINATIONS:  # torch imports some of itself at first use: once here rather than in every child
        run = Run(*names, folder / "none")
        run.train(2)
    if mode == "points":
        kill_at_points(folder)
        return
    moments = random.Random(int(sys.argv[3]))
    for names in COMBINATIONS:
        print(json.dumps(kill_at_random(names, folder / "-".join(names), moments)), flush=True)


if __name__ == "__main__":
    main()
