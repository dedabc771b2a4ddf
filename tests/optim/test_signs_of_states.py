"""Which states have no sign in 8 bits: those that are never negative, and no other."""

from __future__ import annotations

import pytest
import torch
from cases import F32, LOOPS, Case
from stored_states import give_gradients, parameters

from fusedopt.optim import _formats


@pytest.mark.parametrize("case", [c for c in LOOPS if c.states], ids=str)
def test_states_have_no_sign_in_eight_bits_where_they_are_never_negative(case: Case) -> None:
    """With a sign, what is divided by would become 0 where it is small: docs/add_a_rule.md sends its readers here."""
    (p,) = parameters(F32, [(1000,)])
    opt, seen = case.make([p]), {name: [torch.zeros(())] for name in case.states}
    for step in range(4):
        give_gradients([p], step)  # of both signs, as the elements of `p`
        opt.step()
        for name, values in seen.items():
            values += opt.state[p][name].aminmax()
    for name, values in seen.items():
        low, high = torch.stack(values).aminmax()
        signed = _formats.stored(opt.state[p][name], name, _formats.EIGHT_BITS)[0].dtype == torch.int8
        if low < 0:
            assert signed, f"{name!r} is negative at times: take it out of _NOT_NEGATIVE in fusedopt/optim/_formats.py"
        elif high > 0:  # and not idle
            add = "add it to _NOT_NEGATIVE in fusedopt/optim/_formats.py, or 8 bits round its small values to 0"
            assert not signed, f"{name!r} is never negative: {add}"
