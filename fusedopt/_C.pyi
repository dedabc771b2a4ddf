from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, overload

from torch import Tensor

RULES: dict[str, int]
STATES: list[list[str]]
SCALARS: list[list[str]]
SCOPES: list[Literal["tensor", "group"] | None]
BLOCK: int

BUILT_FOR: str
GPU: str | None
REASONS: dict[str, str]

def is_capturing() -> bool: ...
def observer() -> str | None: ...
def clip_coefficient(norm: float, max_norm: float, epsilon: float) -> float: ...
def isa() -> str: ...
def cut(numels: Sequence[int], size: int) -> list[tuple[int, int, int]]: ...

class Plan:
    @overload
    def refresh(
        self,
        groups: Iterable[Mapping[str, Any]],
        state: Mapping[Any, Any],
        numbers: list[tuple[Any, ...]],
        counted: list[bool],
        initialized: bool,
        placed: bool,
        at_once: Literal[False] = False,
        done: list[int] = ...,
    ) -> tuple[list[int], list[int], list[int], list[int]]: ...
    @overload
    def refresh(
        self,
        groups: Iterable[Mapping[str, Any]],
        state: Mapping[Any, Any],
        numbers: list[tuple[Any, ...]],
        counted: list[bool],
        initialized: bool,
        placed: bool,
        at_once: bool,
    ) -> tuple[list[int], list[int], list[int], list[int]] | None: ...
    @property
    def sharded(self) -> bool: ...
    @property
    def resharded(self) -> bool: ...
    def set_domains(self, domains: list[int], slots: list[int]) -> None: ...
    def add_square_sums(self, parts: list[Tensor]) -> None: ...
    def begin(
        self,
        scale: float,
        scalings: Mapping[int, tuple[Tensor | None, Tensor | None, Tensor | None]],
        max_norm: float,
        epsilon: float,
        parts: list[Tensor],
    ) -> None: ...
    def end(
        self,
        scale: float,
        scalings: Mapping[int, tuple[Tensor | None, Tensor | None, Tensor | None]],
        max_norm: float,
        epsilon: float,
        parts: list[Tensor],
    ) -> None: ...
    @property
    def devices(self) -> list[int]: ...
    def square_sum(self) -> float: ...
    def norm(self, device: int, scale: float, grad_scale: Tensor | None) -> tuple[Tensor, Tensor]: ...
    def release(self) -> None: ...
    @overload
    def run(self, scale: float) -> None: ...
    @overload
    def run(
        self,
        scale: float,
        scalings: Mapping[int, tuple[Tensor | None, Tensor | None, Tensor | None]],
        max_norm: float,
        epsilon: float,
    ) -> None: ...
    @property
    def has_odd_numbers(self) -> bool: ...
    def reasons(self) -> list[str | None]: ...
    def bytes_per_step(self, clips: bool, late: list[bool]) -> int: ...
    def memory(self) -> int: ...
