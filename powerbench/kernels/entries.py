"""Contestants of other packages (entry points in the group `powerbench.kernels`): what is wrong with one costs its row.

A package that does not import, raises whatever it likes or ends the interpreter when imported, offers something else
than a `Kernel`, or a record that cannot be used, is a row nevertheless, which says why: all others go on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container
from dataclasses import replace
from importlib.metadata import EntryPoint

from powerbench.errors import in_words
from powerbench.kernels.kernel import Decoding, Kernel, Support, no_params

GROUP = "powerbench.kernels"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")  # part of case ids, options and file names
CALLABLES = ("version", "resolve", "unsupported", "prepare", "reference", "launches", "workspace_bytes")


def load(entry: EntryPoint, taken: Container[str]) -> Kernel:
    """The kernel of an entry point, marked with who provides it; in its place a record that refuses every case."""
    try:
        kernel = entry.load()
        flaw = _flaw(kernel, taken)
        return _refusing(entry, taken, flaw) if flaw else replace(kernel, provider=_provider(entry))
    except BaseException as error:  # a module of others may raise anything, and may call sys.exit
        if type(error) is KeyboardInterrupt:  # the user's, not one made to look like it
            raise
        return _refusing(entry, taken, f"does not load: {in_words(error)}")


def _provider(entry: EntryPoint) -> str:
    try:
        return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
    except Exception:  # metadata without a name or a version
        return entry.value


def _flaw(kernel: object, taken: Container[str]) -> str | None:
    """Why this cannot be a row; None: it can."""
    if not isinstance(kernel, Kernel):
        return f"is no powerbench Kernel but of type {type(kernel).__name__}"
    for field in ("name", "family"):
        text = getattr(kernel, field)
        if not isinstance(text, str) or not NAME.fullmatch(text):
            return f"has a {field} that is none: allowed are letters, digits and . _ + -, 64 at most"
    if kernel.name in taken:
        return f"adds a kernel {kernel.name!r}, but that name is taken"
    wrong = [name for name in CALLABLES if not callable(getattr(kernel, name))]
    wrong += [] if isinstance(kernel.summary, str) else ["summary"]
    wrong += [] if isinstance(kernel.takes, frozenset | set) else ["takes"]
    wrong += [] if isinstance(kernel.support, Support) else ["support"]
    wrong += [] if kernel.decoding is None or isinstance(kernel.decoding, Decoding) else ["decoding"]
    wrong += [] if kernel.phases is None or callable(kernel.phases) else ["phases"]
    seconds = kernel.tuning_seconds
    wrong += [] if isinstance(seconds, int | float) and 0 <= seconds < math.inf else ["tuning_seconds"]
    return f"has no usable {', '.join(wrong)}" if wrong else None


def _refusing(entry: EntryPoint, taken: Container[str], why: str) -> Kernel:
    reason = f"entry point {entry.value} of group {GROUP} {why}"
    name = re.sub(r"[^A-Za-z0-9._+-]", "-", entry.name)[:48].lstrip("._+-") or "unnamed"
    names = (name, *(f"{name}-{number}" for number in range(2, 10**6)))
    name = next(name for name in names if name not in taken)
    return Kernel(
        name=name,
        family=name,
        summary=reason,
        takes=frozenset(),
        gated=False,
        version=lambda: None,
        resolve=no_params,
        unsupported=lambda case, device_type: reason,
        prepare=_never,
        reference=_never,
        launches=lambda case: (),
        workspace_bytes=lambda case: 0,
        support=Support(install=f"mend {_provider(entry)}", passes=()),
        provider=_provider(entry),
    )


def _never(*_: object) -> None:
    raise AssertionError("a refused case does not run")
