"""The hooks that parameters have while an optimizer steps them in the backward pass."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.nn.parameter import is_lazy


class Steps(Protocol):
    """What a hook needs of the handle."""

    def _step(self, p: Tensor) -> None: ...
    def _is_over(self) -> bool: ...


class Hook:
    """What parameters hold, and which holds neither them nor the optimizer."""

    def __init__(self, steps: Steps) -> None:
        self.steps = weakref.ref(steps)
        self._warned = False

    def __call__(self, param: Tensor) -> None:
        steps = self.steps()
        if steps is None:
            self.warn(param)
        else:
            steps._step(param)

    def is_idle(self) -> bool:
        """Whether nothing steps by it any more."""
        steps = self.steps()
        return steps is None or steps._is_over()

    def warn(self, param: Tensor) -> None:
        """Says, once for all parameters, that nothing steps them, and leaves this one."""
        unhook(param, lambda hook: hook is self)
        if not self._warned:
            self._warned = True
            warnings.warn(
                "the optimizer that was to step in the backward pass is gone, and nothing steps its parameters there "
                "any more: keep it as long as you train, or call remove() on the handle before you let it go",
                stacklevel=1,
            )


def hooks_of(param: Tensor) -> dict[int, Any]:
    return param._post_accumulate_grad_hooks or {}


def unhook(param: Tensor, which: Callable[[Hook], bool]) -> None:
    """Removes those of these hooks from a parameter."""
    hooks = hooks_of(param)
    for key in [key for key, hook in hooks.items() if isinstance(hook, Hook) and which(hook)]:
        hooks.pop(key, None)


def can_require_grad(param: Tensor) -> bool:
    """Whether a hook can be registered, which only parameters take that require gradients, now or for that while."""
    if is_lazy(param):
        return False
    return param.requires_grad or ((param.is_floating_point() or param.is_complex()) and not param.is_inference())
