"""The package's schedules by name, and their formulas."""

from __future__ import annotations

import math

import pytest

from fusedopt.schedulers import (
    ExponentialDecayLR,
    FlatCosineLR,
    HalvingLR,
    InverseDecayLR,
    InverseSqrtLR,
    RampLR,
    WarmupLR,
    WarmupStableDecayLR,
)


def warmup_stable_decay(base, t):
    if t < 4:
        return base * (0.1 + 0.9 * (t / 4))
    if t < 10:
        return base
    return base * (0.2 + 0.8 * (1 - math.sqrt(min(1, (t - 10) / 8))))


def flat_cosine(base, t):
    if t <= 9:
        return base
    return base * (0.1 + 0.9 * (1 + math.cos(math.pi * (t - 9) / 3)) / 2) if t < 12 else base * 0.1


# Each schedule, and its formula written anew.
SCHEDULES = {
    "exponential-decay": (lambda o: ExponentialDecayLR(o, 0.1), lambda b, t: b * math.exp(-0.1 * t)),
    "exponential-every-10": (
        lambda o: ExponentialDecayLR(o, 0.1, 10),
        lambda b, t: b * math.exp(-0.1 * (t // 10 * 10)),
    ),
    "halving": (lambda o: HalvingLR(o, 3), lambda b, t: b / 2.0 ** (t // 3) if t < 3000 else b * 0.5 ** (t // 3)),
    "inverse-decay": (lambda o: InverseDecayLR(o, 0.1), lambda b, t: b / (1 + 0.1 * t)),
    "inverse-sqrt": (lambda o: InverseSqrtLR(o, 50), lambda b, t: b / math.sqrt(1 + t / 50)),
    "warmup-linear": (lambda o: WarmupLR(o, 5), lambda b, t: b * (0.1 + (1 - 0.1) * (t / 5)) if t < 5 else b),
    "warmup-exponential": (
        lambda o: WarmupLR(o, 5, "exponential"),
        lambda b, t: b * 0.1 ** (1 - t / 5) if t < 5 else b,
    ),
    "warmup-constant": (lambda o: WarmupLR(o, 5, "constant", 0.3), lambda b, t: b * (0.3 if t < 5 else 1)),
    "warmup-stable-decay": (lambda o: WarmupStableDecayLR(o, 4, 6, 8, final_factor=0.2), warmup_stable_decay),
    "flat-cosine": (lambda o: FlatCosineLR(o, 12, final_factor=0.1), flat_cosine),
    "ramp-exp": (lambda o: RampLR(o, 0.7, 7), lambda b, t: b * (0.7 / b) ** min(1, t / 7)),
    "ramp-linear": (lambda o: RampLR(o, 0.7, 7, "linear"), lambda b, t: b + (0.7 - b) * min(1, t / 7)),
}


by_name = pytest.mark.parametrize("name", SCHEDULES)
