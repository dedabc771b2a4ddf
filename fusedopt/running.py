"""``python -m fusedopt run script.py arg ...``: a script as it stands, with torch.optim's classes replaced."""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import pkgutil
import runpy
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType, TracebackType
from typing import NoReturn

from fusedopt.replacement import installed
from fusedopt.watching import Watch, all_fused, report, watching

USAGE = """Usage: fusedopt run SCRIPT [ARGUMENT ...]
       fusedopt run -m MODULE [ARGUMENT ...]

Runs a Python script with torch.optim's classes replaced by fusedopt's, which it need not know of. PyTorch is imported
before it: set what that reads of the environment (OMP_NUM_THREADS) outside of the script.
At the end it says on standard error which optimizers were replaced, which path their parameters took, and what share of
the time their steps were. Under torchrun: torchrun --nproc-per-node=2 -m fusedopt run train.py
"""


def main(arguments: Sequence[str]) -> None:
    """Runs what the command line names, as Python would; its exit code and its exceptions are the script's."""
    if not arguments or arguments[0] in ("-h", "--help"):
        (sys.stdout if arguments else sys.stderr).write(USAGE)
        raise SystemExit(0 if arguments else 2)
    module = arguments[0] == "-m"
    if arguments[0].startswith("-") and (not module or len(arguments) == 1):
        _refuse(f"{'-m needs a module' if module else f'no option {arguments[0]}'}; see fusedopt run --help")
    target, given = (arguments[1], arguments[2:]) if module else (arguments[0], arguments[1:])
    sys.argv = [target, *given]
    if not sys.flags.safe_path:  # where Python puts the folder of a script, and with -m the current one
        sys.path[0] = os.getcwd() if module else os.path.dirname(os.path.realpath(target))
    if module:
        _find(target)
    elif not os.path.exists(target):
        _refuse(f"there is no file {target}")
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
        frames = _of_the_script(frames)
        shown(kind, error.with_traceback(frames), frames)

    sys.excepthook = hook
    _run(target, module)


def _run(target: str, module: bool) -> None:
    watch = Watch()
    try:
        with watching(watch), installed():
            if module:
                runpy.run_module(target, run_name="__main__", alter_sys=True)
            elif pkgutil.get_importer(target) is not None:  # a folder or an archive with a __main__.py
                runpy.run_path(target, run_name="__main__")
            else:
                _run_file(os.path.abspath(target))
    finally:
        rank = os.environ.get("RANK", "0")  # under torchrun, where one process speaks for all that are like it
        if rank == "0" or not all_fused(watch):
            title = "fusedopt run" if "RANK" not in os.environ else f"fusedopt run, rank {rank}"
            with suppress(OSError, AttributeError):  # standard error may be closed, or not be there
                sys.stderr.write("".join(f"{title}: {line}\n" for line in report(watch)))


def _run_file(path: str) -> None:
    """As runpy.run_path, but `__main__` and its name stay what Python makes of a script, to the end of the process."""
    script = ModuleType("__main__")
    vars(script).update(__file__=path, __builtins__=builtins, __annotations__={}, __cached__=None)
    sys.modules["__main__"] = script
    with io.open_code(path) as file:
        source = file.read()
    exec(compile(source, path, "exec", dont_inherit=True), vars(script))


def _find(module: str) -> None:
    """Says in one line that there is no such module."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:  # of a package on the way to it, or of what that imports
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        found = False
    if not found:
        _refuse(f"there is no module {module}", code=1)


def _refuse(message: str, code: int = 2) -> NoReturn:
    sys.stderr.write(f"fusedopt run: {message}\n")
    raise SystemExit(code)


def _of_the_script(frames: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames that led to the script."""
    rest = frames
    while rest is not None and rest.tb_frame.f_code is not _run.__code__:
        rest = rest.tb_next
    if rest is None:
        return frames
    rest = rest.tb_next
    while rest is not None and (
        rest.tb_frame.f_code is _run_file.__code__ or rest.tb_frame.f_code.co_filename == "<frozen runpy>"
    ):
        rest = rest.tb_next
    return rest
