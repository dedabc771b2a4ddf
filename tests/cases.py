"""Every optimizer with every option, as data: what the tests run over.

`CASES` holds each entry of the tables in rules/ three times: as it stands (without weight decay), as `-decay`, and as
`-fast`, with weight decay and a learning rate so high that a missing term cannot hide under a tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from case import Case as Case

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = [F32, F64, BF16, F16]
HALVES = [BF16, F16]


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tables() -> Iterator[Case]:
    """The entries of every file in rules/."""
    for path in sorted((Path(__file__).parent / "rules").glob("*.py")):
        yield from import_module(f"rules.{path.stem}").CASES


def _with_twins(case: Case) -> list[Case]:
    decays = [{} if case.decays is None else {"weight_decay": decay} for decay in case.decays or (0, 0)]
    decay = replace(case, name=f"{case.name}-decay", kwargs=case.kwargs | decays[0])
    fast = replace(case, name=f"{case.name}-fast", kwargs=case.kwargs | decays[1] | {"lr": case.fast_lr})
    return [case, fast] if case.decays is None else [case, decay, fast]


CASES: list[Case] = [twin for case in _tables() for twin in _with_twins(case)]
FAST_CASES: list[Case] = [case for case in CASES if case.name.endswith("-fast")]
BY_NAME: dict[str, Case] = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases in tests/rules/ have one name"


def _one_of_each() -> list[Case]:
    """Of each class, form and phase the case with most states and options, with weight decay where the class has it and
    without clipping.
    """
    chosen: dict[Any, Case] = {}
    for case in CASES:
        kind = case.cls, case.twin is None, bool(case.idle)
        decays = case.name.endswith("-decay") or (case.decays is None and not case.name.endswith("-fast"))
        if decays and case.max_grad_norm is None and "maximize" not in case.kwargs:
            best = chosen.setdefault(kind, case)
            if (len(case.states), len(case.kwargs)) >= (len(best.states), len(best.kwargs)):
                chosen[kind] = case
    return list(chosen.values())


ONE_OF_EACH: list[Case] = _one_of_each()

# One of each loop that is compiled: of a class, a form, a phase and a set of states, with clipping and without.
LOOPS: list[Case] = list(
    {(c.cls, c.twin is None, c.states, c.idle, c.max_grad_norm is None): c for c in FAST_CASES}.values()
)
