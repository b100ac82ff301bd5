"""The keys of a suite: the one table behind the command line's options and the TOML files, and how values are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from powerbench.bounds import LARGEST
from powerbench.problem import DTYPES, PASSES
from powerbench.suites.grammar import SelectorError, count, counts, counts_or_auto, words

# key -> parser of its text
_PARSERS: dict[str, Callable[[str, str], Any]] = {
    **{
        key: partial(parser, most=LARGEST[key])
        for key, parser in (
            ("p", counts), ("ctx", counts), ("chunk", counts_or_auto), ("d_tile", counts_or_auto), ("head_dim", counts),
            ("value_dim", counts), ("heads", counts), ("kv_heads", counts), ("batch", counts), ("tokens", count),
        )
    },
    "dtype": lambda text, name: words(text, name, DTYPES),
    "pass": lambda text, name: words(text, name, PASSES),
    "kernels": words,
}  # fmt: skip
# key -> type, which values of it are good, and both in words
_TYPES: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    "name": (str, lambda name: re.fullmatch(r"[\w.-]+", name) is not None, "a text of letters, digits and ._-"),
    "purpose": (str, bool, "a text"),
    "shows": (str, bool, "a text"),
    "minutes": (int, lambda minutes: 0 < minutes <= LARGEST["minutes"], "a whole number of minutes"),
    "gated": (bool, lambda gated: True, "true or false"),
}
SELECTORS = (*_PARSERS, "gated")
DESCRIPTIONS = tuple(key for key in _TYPES if key not in SELECTORS)


def parse(key: str, value: Any, name: str) -> Any:
    """The value of a key, from TOML or as text from the command line. Raises SelectorError with `name` in it."""
    if key in _TYPES:
        kind, is_good, in_words = _TYPES[key]
        if type(value) is not kind or not is_good(value):
            raise SelectorError(f"{name}: {value!r} must be {in_words}")
        return value
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise SelectorError(f"{name}: {value!r} must be a number, a text such as '1k..64k', or a list of them")
    return _PARSERS[key](str(value), name)


def attribute(key: str) -> str:
    """The `Suite` attribute of a key."""
    return "pass_" if key == "pass" else key
