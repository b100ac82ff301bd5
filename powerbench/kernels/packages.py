"""Optional packages of other people: which version is installed, and does it import here."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

NEEDS_CUDA = "needs a CUDA device"


def installed_version(*distributions: str) -> str | None:
    """Version of the first of these distributions (names as pip knows them) that is installed; None: none is."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def import_problem(distribution: str, module: str) -> str | None:
    """Why `module` of an installed distribution does not import, in one line; None: it does."""
    try:
        importlib.import_module(module)
    except Exception as error:  # other people's module: a missing library, an unknown GPU, another torch's ABI
        lines = str(error).strip().splitlines() or [""]
        return f"{distribution} does not import: {type(error).__name__}: {lines[0]}"
    return None
