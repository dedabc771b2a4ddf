"""What the tests of trainers share: a small problem that torch's class and ours have to solve alike."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from integrations.problem import CLASSES, make_model
from torch import nn

import fusedopt


@pytest.fixture(params=CLASSES)
def both(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a training with torch's class and with ours, and compares the weights that it returns."""

    def compare(training: Callable[[Callable[..., Any]], Any], rtol: float = 1e-5, atol: float = 1e-6) -> None:
        start = nn.utils.parameters_to_vector(make_model().parameters())
        results = []
        for module in torch.optim, fusedopt:
            torch.manual_seed(0)
            results.append(training(partial(getattr(module, request.param), **CLASSES[request.param])))
        theirs, ours = (nn.utils.parameters_to_vector(result.parameters()) for result in results)
        if theirs.shape == start.shape:
            assert (theirs - start).abs().max() > 1e-2
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)

    return compare
