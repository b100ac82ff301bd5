"""A failing problem made small: simpler values of one field after the other, as long as it fails the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from powerbench.errors import UserError
from powerbench.fuzz.problem import FuzzProblem

TRIES = 60
SECONDS = 120.0

# Simplest first; sizes are tried between the least and the value they have. First what costs no compilation.
_SIMPLEST: dict[str, tuple[Any, ...]] = {
    "split": (0,), "layout": ("contiguous",), "scale": (1.0,), "values": ("plain", "raw"),
    "gates": ("none", "zero", "slow"), "loss": ("y", "state"), "initial": (False,), "final": (False,),
    "low": (False,), "normalize": (False,), "decode": ("plain",), "d_tile": (0,),
}  # fmt: skip
_SIZES = ("padding", "B", "H", "T", "chunk", "step", "window")
_DIMS = {"d": (16, 32, 64), "e": (16, 32, 64), "p": (1, 2, 3)}


def shrink(problem: FuzzProblem, fails: Callable[[FuzzProblem], bool], deadline: float | None = None) -> FuzzProblem:
    """The smallest problem found that fails too. deadline: on the monotonic clock."""
    end = min(time.monotonic() + SECONDS, float("inf") if deadline is None else deadline)
    seen, tries = {problem}, 0
    progress = True
    while progress:
        progress = False
        for name in [*_SIMPLEST, *_SIZES, *_DIMS]:
            for smaller in _smaller(problem, name):
                if smaller in seen:
                    continue
                if tries >= TRIES or time.monotonic() >= end:
                    return problem
                seen.add(smaller)
                tries += 1
                if fails(smaller):
                    problem, progress = smaller, True
                    break
    return problem


def _smaller(problem: FuzzProblem, name: str) -> Iterator[FuzzProblem]:
    value = getattr(problem, name)
    if name in ("step", "window") and problem.decode == "no":
        return
    if name in _SIMPLEST:
        simple = _SIMPLEST[name]
        wanted = simple[: simple.index(value)] if value in simple else simple
    elif name in _SIZES:
        least = 0 if name in ("chunk", "padding") else 1
        wanted = tuple(
            dict.fromkeys(x for x in (least, value // 4, value // 2, value * 3 // 4, value - 1) if least <= x < value)
        )
    else:
        wanted = tuple(x for x in _DIMS[name] if x < value)
    for x in wanted:
        try:
            yield _with(problem, name, x)
        except UserError:  # the fields no longer fit each other
            continue


def _with(problem: FuzzProblem, name: str, value: Any) -> FuzzProblem:
    """The problem with one field changed, and those that depend on it."""
    changes = {name: value}
    if name == "H" and value % problem.Hk:
        changes["Hk"] = 1
    if name == "T":
        changes |= {"split": min(problem.split, value - 1), "padding": min(problem.padding, value)}
    if name == "final" and problem.loss not in ("none", "y"):
        changes["loss"] = "y"
    if name == "d" and problem.d_tile and value % problem.d_tile:
        changes["d_tile"] = 0
    if name == "p" and value % 2:
        changes["normalize"] = False
    return problem.but(**changes)
