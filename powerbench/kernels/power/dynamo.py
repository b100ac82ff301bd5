"""What torch.compile has to know of a function, said without importing it: that would take a second of every start."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def constant_result(function: Callable[P, R]) -> Callable[P, R]:
    """Marked as `torch.compiler.assume_constant_result` marks it, which imports torch._dynamo first."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
