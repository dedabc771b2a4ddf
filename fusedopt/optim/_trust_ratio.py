"""Steps in plain PyTorch whose length is each tensor's own, by its norm and that of its update: LAMB's and LARS's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusedopt.optim._plain import PlainOptimizer
from fusedopt.optim._processes import Spread


class TrustRatioOptimizer(PlainOptimizer):
    """A subclass adds `_direction` and `_move`, between which the norms are taken, over all processes."""

    def _adapts(self, group: dict[str, Any]) -> bool:
        """Whether the tensors of a group have a trust ratio."""
        raise NotImplementedError

    def _direction(
        self, group: dict[str, Any], param: Tensor, grad: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The weight before the step, and the tensor whose norm counts beside its own; may update the state."""
        raise NotImplementedError

    def _move(
        self, group: dict[str, Any], param: Tensor, direction: Tensor, state: dict[str, Tensor], *norms: Tensor
    ) -> None:
        """Updates the parameter, given the norms of the two where the group has a trust ratio."""
        raise NotImplementedError

    def _update_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        spread: Spread | None = self.__dict__.get("_spread")
        if spread is None or not spread.pieces or not self._adapts(group):
            super()._update_group(group, params)
            return
        directions = {}
        for p in params:
            assert p.grad is not None
            directions[p] = self._direction(group, p, -p.grad if group["maximize"] else p.grad, self.state[p])
        squares = [
            _square(directions[p][which]) if p in directions else 0.0 for p in group["params"] for which in (0, 1)
        ]
        totals = iter(spread.total(squares))
        for i, p in enumerate(group["params"]):
            norms = [math.sqrt(next(totals)) for _ in range(2)]
            if p in directions:
                if id(p) in spread.everywhere:
                    norms = [math.sqrt(square) for square in squares[2 * i : 2 * i + 2]]
                self._move(group, p, directions[p][1], self.state[p], *map(torch.tensor, norms))

    def _update(self, group: dict[str, Any], param: Tensor, grad: Tensor) -> None:
        state = self.state[param]
        weight, direction = self._direction(group, param, grad, state)
        # The norm of a large float16 tensor is beyond float16.
        wide = torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else None
        adapts = self._adapts(group)
        norms = [torch.linalg.vector_norm(t, dtype=wide) for t in (weight, direction)] if adapts else []
        self._move(group, param, direction, state, *norms)

    def _first_pass(
        self, group: dict[str, Any], param: Tensor, grad: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Of a shard: squares of the weight and of its direction, and what to do with those of all shards."""
        weight, direction = self._direction(group, param, grad, state)
        squares = torch.stack([t.abs().double().square().sum() for t in (weight, direction)])
        return squares, lambda everywhere: self._move(group, param, direction, state, *everywhere.sqrt())


def _square(t: Tensor) -> float:
    return float(t.detach().abs().double().square().sum())
