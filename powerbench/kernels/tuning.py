"""Autotuners of Triton in other people's packages: each problem gets a choice of its own.

A tuner chooses once for each value of its key, and keys leave out how long and how many the sequences are. What was
chosen for 64 sequences of 1k then serves one of 64k, which has other needs: on an H200 FLA's forward pass takes up to
twice as long so. Somebody who uses one shape tunes at that shape, and it is that time which is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from powerbench.problem import Problem

# Of each configuration, where Triton's own 25 and 100 would make a sweep over contexts wait for minutes.
WARM_UP_MS, MEASURED_MS = 2, 10

_current: dict[str, Problem] = {}
_choices: dict[tuple[str, Problem], dict[Any, dict[Any, Any]]] = {}


def tuned_for(package: str, problem: Problem) -> None:
    """From here on the autotuners in the package's modules know what they chose for this problem, and nothing else.

    To be called in the forward pass: the contestants of a problem are measured in turns, those of another never with
    them, so that the backward pass finds it unchanged.
    """
    if _current.get(package) == problem:
        return
    _current[package] = problem
    kept = _choices.setdefault((package, problem), {})
    for tuner in autotuners(package):
        tuner.cache = kept.setdefault(tuner, {})
        tuner.do_bench = _quick_bench


def autotuners(package: str) -> Iterator[Any]:
    """The autotuners of all modules of the package that are imported, also those below heuristics."""
    if "triton" not in sys.modules:
        return
    from triton.runtime.autotuner import Autotuner  # noqa: PLC0415  optional
    from triton.runtime.jit import KernelInterface  # noqa: PLC0415  as above

    for name, module in list(sys.modules.items()):
        if name == package or name.startswith(f"{package}."):
            for value in list(vars(module).values()):
                decorated = value
                while isinstance(decorated, KernelInterface):
                    if isinstance(decorated, Autotuner):
                        yield decorated
                    decorated = getattr(decorated, "fn", None)


def _quick_bench(call: Any, quantiles: Any) -> Any:
    from triton.testing import do_bench  # noqa: PLC0415  optional

    return do_bench(call, warmup=WARM_UP_MS, rep=MEASURED_MS, quantiles=quantiles)
