"""The yardstick: how far from the truth a result may be.

An absolute tolerance says nothing about an update that is smaller. So ours is measured against torch's own error: per
tensor, on parameters and states, after every step, with `reference` in float64 and `torch` the more accurate of torch's
for-loop and fused forms in the same dtype,

    max |ours - reference| <= 2.0 * max |torch - reference| + slack
    rms |ours - reference| <= 1.2 * rms |torch - reference| + slack

where slack is 4 ulp, in the dtype computed in, of the largest reference value, and for float16 and bfloat16 half an ulp
of the storage besides, for the one rounding on the way to memory. (4 ulp of a bfloat16 would be 3 % of the value.)

float32 runs freely from the same start, so errors that build up are seen. In float16 and bfloat16 a parameter that was
rounded up once goes another way for good, and after a few steps two correct results differ by chance as much as a wrong
one: there all take over our parameters and states after every step, and each step is measured alone. So it is in
float64, where the reference is no more exact than we are. There torch's error is that of torch in float32, scaled from
the one precision to the other, which tells how far the arithmetic carries an error, and slack is 16 ulp: for the errors
of both, and of norms, which are summed in double whatever the dtype.
Where torch has left the range of float16 (its for-loop computes in it, and eps=1e-8 is 0 there), its error is taken
over the elements that are still finite: ours must be right everywhere.

A reference that hardly moves proves nothing. `Closeness.moved` is how far the reference went in a step, in tolerances.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import gpu
import numpy as np
import torch
from cases import HALVES, Case
from numpy.typing import NDArray
from reference import FORMS, Reference, has_form
from torch import Tensor
from torch.optim import Optimizer

Array = NDArray[np.float64]
RIVAL_DTYPES = {torch.float64: torch.float32, **{dtype: dtype for dtype in (torch.float32, *HALVES)}}
MOVED = {torch.float64: 100, torch.float32: 100, torch.float16: 100, torch.bfloat16: 10}


def ulp(value: float, dtype: torch.dtype) -> float:
    """Distance from |value| to the next larger number of this dtype."""
    info = torch.finfo(dtype)
    exponent = math.floor(math.log2(abs(value))) if value else -math.inf
    return max(2.0**exponent * info.eps, info.smallest_normal * info.eps)


def slack(largest: float, dtype: torch.dtype) -> float:
    if dtype in HALVES:
        return 4 * ulp(largest, torch.float32) + 0.5 * ulp(largest, dtype)
    return (16 if dtype == torch.float64 else 4) * ulp(largest, dtype)


def tolerance(name: str, ours: Tensor, rivals: Sequence[Tensor], reference: Tensor, before: float = 0) -> float:
    """Asserts that `ours` is as close as the yardstick asks, and returns what max |ours - reference| was held against.

    `before` is the largest value that the reference has had before: where it cancels, the error made then remains.
    """
    assert ours.shape == reference.shape, name
    if ours.numel() == 0:
        return 0.0
    x, exact = numbers_of(ours), numbers_of(reference)
    expected = numbers_of(reference.to(ours.dtype))  # infinite where the reference is beyond the dtype
    finite = np.isfinite(expected)
    if not finite.all():
        same = (x == expected) | (np.isnan(x) & np.isnan(expected))
        assert same[~finite].all(), f"{name}: NaN or infinity in other places than the reference"
    assert (np.isfinite(x) | ~finite).all(), f"{name}: NaN or infinity where the reference has none"
    if not finite.any():
        return 0.0

    allowed = slack(max(before, float(np.abs(exact[finite]).max())), ours.dtype)
    largest, rms = _errors(x, exact, finite)
    values = [numbers_of(rival) for rival in rivals]
    theirs = [_errors(value, exact, finite & np.isfinite(value)) for value in values]
    scale = [torch.finfo(ours.dtype).eps / torch.finfo(rival.dtype).eps for rival in rivals]
    largest_allowed = 2.0 * min(error * s for (error, _), s in zip(theirs, scale, strict=True)) + allowed
    # Over many elements chance averages out, but the error of a norm in float64 does not.
    if ours.numel() > 1000 and ours.dtype != torch.float64:
        allowed /= 8
    rms_allowed = 1.2 * min(error * s for (_, error), s in zip(theirs, scale, strict=True)) + allowed
    assert largest <= largest_allowed, f"{name}: error {largest:.3g}, allowed {largest_allowed:.3g}"
    assert rms <= rms_allowed, f"{name}: rms error {rms:.3g}, allowed {rms_allowed:.3g}"
    return largest_allowed


def numbers_of(tensor: Tensor) -> Array:
    """Its elements in float64, in NumPy, whose operations on few elements take a third of the time of torch's."""
    return tensor.double().numpy(force=True).ravel()


def largest_finite(values: Array) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))


def _errors(x: Array, reference: Array, where: NDArray[np.bool_]) -> tuple[float, float]:
    error = x[where] - reference[where]
    if error.size == 0:
        return 0.0, 0.0
    return float(np.abs(error).max()), math.sqrt(error.dot(error) / error.size)


def clone(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy in the same layout, with memory of its own."""
    return tensor.detach().to(dtype or tensor.dtype, copy=True)


class Closeness:
    """Runs our optimizer beside the reference and torch's forms, and compares after each step."""

    def __init__(
        self,
        case: Case,
        params: list[Tensor],
        *,
        groups: Sequence[tuple[Sequence[int], dict[str, Any]]] | None = None,
        forms: Sequence[str] = FORMS,
    ) -> None:
        """With `groups`, the indices of the parameters of each group and its own hyper-parameters."""
        self.case, self.params = case, params
        self.groups = groups or [(range(len(params)), {})]
        self.moved: defaultdict[tuple[int, str], float] = defaultdict(float)
        self.largest: defaultdict[tuple[int, str], float] = defaultdict(float)
        self.ours: Optimizer = case.make(self._grouped(params))
        self.reference = self._rival([clone(p, torch.float64) for p in params], "for-loop")
        forms = [form for form in forms if has_form(case.twin, form)]
        self.rivals = [self._rival([clone(p, RIVAL_DTYPES[p.dtype]) for p in params], form) for form in forms]

    def _grouped(self, params: list[Tensor]) -> list[dict[str, Any]]:
        return [{"params": [params[i] for i in indices], **options} for indices, options in self.groups]

    def _rival(self, params: list[Tensor], form: str) -> Reference:
        limit = self.case.max_grad_norm
        return Reference(
            self.case.reference, params, self._grouped(params), self.case.kwargs, form=form, max_grad_norm=limit
        )

    def reload(self) -> None:
        """Goes on with a new optimizer, from the old one's state_dict."""
        state_dict = copy.deepcopy(self.ours.state_dict())
        self.ours = self.case.make(self._grouped(self.params))
        self.ours.load_state_dict(state_dict)

    def step(self, grads: list[Tensor | None], paths: Sequence[str] = ("fused", "none")) -> None:
        """One step for all. The gradients of our parameters are these very tensors; `paths` are those they may take."""
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad
        self.ours.step()
        for explanation in self.ours.explain():
            assert explanation.path in paths, explanation
        with gpu.unwatched():  # where torch's own steps take place, and what they are compared by, is not in question
            reference = self.reference
            before = [clone(p) for p in reference.params], self._states(reference.optimizer, reference.params, clone)
            for run in (reference, *self.rivals):
                run.step(grads)
            self._compare(*before)
            if any(p.dtype != torch.float32 for p in self.params):
                self._synchronise()

    def assert_moved(self, *keys: str) -> None:
        """Each tensor of some size, and its states, must have moved by so many tolerances in some step."""
        for i, p in enumerate(self.params):
            for key in keys:
                if p.numel() >= 15:
                    moved = self.moved[i, key]
                    little = f"{key} of {tuple(p.shape)} moved by only {moved:.3g} tolerances, where a fault could hide"
                    assert moved >= MOVED[p.dtype], f"{little}: give the case hyper-parameters that move it further"

    def _states(
        self, optimizer: Optimizer, params: list[Tensor], f: Callable[[Tensor], Tensor] = lambda t: t
    ) -> dict[tuple[int, str], Tensor]:
        states = [optimizer.state.get(p, {}) for p in params]
        return {(i, key): f(state[key]) for i, state in enumerate(states) for key in self.case.states if key in state}

    def _compare(self, params_before: list[Tensor], states_before: dict[tuple[int, str], Tensor]) -> None:
        def check(i: int, key: str, ours: Tensor, rivals: list[Tensor], reference: Tensor, before: Tensor) -> None:
            name = f"{self.case} {ours.dtype} {key} of {tuple(ours.shape)}"
            if before.numel():
                self.largest[i, key] = max(self.largest[i, key], largest_finite(numbers_of(before)))
            allowed = tolerance(name, ours, rivals, reference, self.largest[i, key])
            if allowed:
                moved = largest_finite(numbers_of(reference - before))
                self.moved[i, key] = max(self.moved[i, key], moved / allowed)

        for i, (p, reference, before) in enumerate(zip(self.params, self.reference.params, params_before, strict=True)):
            check(i, "param", p.detach(), [rival.params[i] for rival in self.rivals], reference, before)

        expected = self._states(self.reference.optimizer, self.reference.params)
        ours = self._states(self.ours, self.params)
        theirs = [self._states(rival.optimizer, rival.params) for rival in self.rivals]
        assert ours.keys() == expected.keys(), f"{self.case}: other states than the reference"
        for (i, key), reference in expected.items():
            before = states_before.get((i, key), torch.zeros_like(reference))
            check(i, key, ours[i, key], [states[i, key] for states in theirs], reference, before)

        for p, q in zip(self.params, self.reference.params, strict=True):
            state, expected_state = self.ours.state.get(p, {}), self.reference.optimizer.state.get(q, {})
            assert state.keys() == expected_state.keys(), f"{self.case}: other keys than the reference"
            for key in ("step", *self.case.scalars):
                if key in state:
                    assert state[key] == expected_state[key], key

    @torch.no_grad()
    def _synchronise(self) -> None:
        self.largest.clear()
        ours = self._states(self.ours, self.params)
        for run in (self.reference, *self.rivals):
            for p, q in zip(self.params, run.params, strict=True):
                q.copy_(p)
            for key, state in self._states(run.optimizer, run.params).items():
                state.copy_(ours[key])
