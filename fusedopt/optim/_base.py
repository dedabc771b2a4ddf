"""What an optimizer says of its rule, and what it keeps for the parts of a step, which take it as an argument."""

from __future__ import annotations

import inspect
import weakref
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.optim.optimizer import Optimizer

from fusedopt._extension import _C
from fusedopt.optim._processes import Spread
from fusedopt.optim._shards import Domains, params_of


class Base(Optimizer):
    """An optimizer of one rule. A subclass says which: in `_numbers`, and in what else differs from the defaults here.

    `_numbers` turns a group into the number of a rule, the rule's hyper-parameters by name and, for a rule that has a
    memory, the tensor in which the group remembers.
    """

    _torch_class: ClassVar[type[Optimizer]]
    _clip_epsilon: ClassVar[float] = 1e-6  # torch.nn.utils.clip_grad_norm_'s
    _sum_scope: ClassVar[Literal["tensor", "group"] | None] = None  # over what the rule takes sums in a step

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, ...]:
        raise NotImplementedError

    def _needs_count(self, group: dict[str, Any]) -> bool:
        """Whether the rule's arithmetic depends on how many steps there have been."""
        return True

    def _is_late(self, group: dict[str, Any]) -> bool:
        """Whether a group's rule has gone over to its other pass."""
        return False

    def _torch_class_of(self, group: dict[str, Any]) -> type[Optimizer]:
        """The class that steps what the fused path does not take of this group."""
        return self._torch_class

    def _sums_tensors(self, group: dict[str, Any]) -> bool:
        """Whether a group takes norms of its tensors, one by one."""
        return False

    def _sparse_error(self, group: dict[str, Any]) -> str | None:
        """What torch says to a sparse gradient in this group, None where it takes one."""
        raise NotImplementedError

    def _first_values(self, group: dict[str, Any]) -> dict[str, float]:
        """What the states start from that do not start from 0."""
        return {}

    def _init_states(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Gives parameters their first state, by torch's own code."""
        init = self._torch_class._init_group  # type: ignore[attr-defined]
        lists = len(inspect.signature(init).parameters) - 2
        init(self, {**group, "params": params}, *([] for _ in range(lists)))

    # Made anew at need: torch drops whatever it does not know when an optimizer is copied or pickled.
    _plan: _C.Plan | None = None
    _domains: Domains | None = None
    _reasons: list[str | None] | None = None  # why each parameter took torch's path in the last step
    _grad_norm: float | Tensor | None = None  # where a GPU keeps it, or a number
    _stepping = False
    _averaged = False  # the parameters have the values of their averages
    _norm_group: Any = None  # as it was given
    _spread: Spread | None = None  # over which processes the parameters are, where that is not in the tensors
    _first = 0  # the number of its first parameter, among all of the optimizer that it steps a part of
    # Where its parameters stand, for those whose first state is made: by id, and whose that is, which is not held.
    _indices: dict[int, tuple[weakref.ref[Tensor], int]] | None = None

    def _index_of(self, param: Tensor) -> int:
        known = self._indices.get(id(param)) if self._indices is not None else None
        if known is None or known[0]() is not param:
            self._indices = {id(p): (weakref.ref(p), i) for i, p in enumerate(params_of(self))}
            known = self._indices[id(param)]
        return self._first + known[1]
