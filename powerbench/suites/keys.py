"""The keys of a suite: the one table behind the command line's options and the TOML files, and how values are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from powerbench.problem import DTYPES, PASSES
from powerbench.suites.grammar import SelectorError, count, counts, counts_or_auto, words

# key -> parser of its text
_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "p": counts,
    "ctx": counts,
    "chunk": counts_or_auto,
    "d_tile": counts_or_auto,
    "head_dim": counts,
    "value_dim": counts,
    "heads": counts,
    "kv_heads": counts,
    "batch": count,
    "tokens": count,
    "dtype": lambda text, name: words(text, name, DTYPES),
    "pass": lambda text, name: words(text, name, PASSES),
    "kernels": words,
}
_TYPES: dict[str, tuple[type, str]] = {
    "name": (str, "text"),
    "purpose": (str, "text"),
    "shows": (str, "text"),
    "minutes": (int, "whole number of minutes"),
    "gated": (bool, "true or false"),
}
SELECTORS = (*_PARSERS, "gated")
DESCRIPTIONS = tuple(key for key in _TYPES if key not in SELECTORS)


def parse(key: str, value: Any, name: str) -> Any:
    """The value of a key, from TOML or as text from the command line. Raises SelectorError with `name` in it."""
    if key in _TYPES:
        kind, words_for_it = _TYPES[key]
        if type(value) is not kind:
            raise SelectorError(f"{name}: {value!r} must be a {words_for_it}")
        return value
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise SelectorError(f"{name}: {value!r} must be a number, a text such as '1k..64k', or a list of them")
    return _PARSERS[key](str(value), name)


def attribute(key: str) -> str:
    """The `Suite` attribute of a key."""
    return "pass_" if key == "pass" else key
