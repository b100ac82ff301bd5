"""Optional packages of other people: which version is installed, does it import here; and torch.compile."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType, ModuleType
from typing import Any

NEEDS_CUDA = "needs a CUDA device"

# By which packages are told not to keep on disk what they chose when they tuned: the GPU may have been busy that day.
TUNE_ANEW = {"FLA_CACHE_RESULTS": "0"}


def installed_version(*distributions: str) -> str | None:
    """Version of the first of these distributions (names as pip knows them) that is installed; None: none is."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def load(module: str) -> ModuleType:
    """Import a package's module, which then tunes in this process unless the user has said otherwise."""
    for name, value in TUNE_ANEW.items():
        os.environ.setdefault(name, value)
    return importlib.import_module(module)


def import_problem(distribution: str, module: str) -> str | None:
    """Why `module` of an installed distribution does not import, in one line; None: it does."""
    try:
        load(module)
    except Exception as error:  # other people's module: a missing library, an unknown GPU, another torch's ABI
        lines = str(error).strip().splitlines() or [""]
        return f"{distribution} does not import: {type(error).__name__}: {lines[0]}"
    return None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of a copy of `function`, for the shapes of one case; raises where it would run uncompiled.

    torch counts how often a code object was compiled, and after eight shapes gives up: many cases share a process. And
    unless told not to, its backward passes overwrite what the forward pass saved; here they run again and again.
    """
    import torch  # noqa: PLC0415  this module is also for what imports none
    import torch._functorch.config as autograd  # noqa: PLC0415  as above

    autograd.donated_buffer = False
    assert isinstance(function, FunctionType)
    code, defaults = function.__code__.replace(), function.__defaults__
    copy = FunctionType(code, function.__globals__, function.__name__, defaults, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return torch.compile(copy, fullgraph=True, dynamic=False)
