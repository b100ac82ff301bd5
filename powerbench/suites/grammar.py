"""The grammar of selectors, shared by the command line and the TOML suites.

A numeric selector is a value (`64k` = 65536), a comma list (`8,16`), or a range: `1k..64k` doubles, `1k..64k:8` takes
eight points evenly spaced in log space, rounded to integers. `auto` leaves the choice to the kernel.
"""

from __future__ import annotations

import re

from powerbench.errors import UserError

SUFFIX = {"": 1, "k": 1024, "m": 1024**2}
_NUMBER = re.compile(r"([0-9]+)([kKmM]?)")


class SelectorError(UserError):
    """A selector that cannot be read: the message names it, what it was and what is allowed."""


def count(text: str, name: str) -> int:
    """One positive integer with an optional k or m suffix (binary: 8k = 8192)."""
    match = _NUMBER.fullmatch(text.strip())
    value = int(match[1]) * SUFFIX[match[2].lower()] if match else 0
    if value < 1:
        raise SelectorError(
            f"{name}: {text.strip()!r} is not a positive integer such as 64, 8k (= 8192), 1m, "
            "a list 8,16 or a range 1k..64k"
        )
    return value


def _range(text: str, name: str) -> list[int]:
    bounds, _, points = text.partition(":")
    first, _, last = bounds.partition("..")
    low, high = count(first, name), count(last, name)
    if low > high:
        raise SelectorError(f"{name}: the range {text!r} runs downwards; write the smaller end first")
    if not points:
        values = [low]
        while values[-1] * 2 <= high:
            values.append(values[-1] * 2)
        return values
    number = count(points, name)
    if number < 2:
        raise SelectorError(f"{name}: the range {text!r} needs at least 2 points")
    step = (high / low) ** (1 / (number - 1))
    return [round(low * step**i) for i in range(number)]


def counts(text: str, name: str) -> tuple[int, ...]:
    """A value, a comma list or a range, as integers in the order written, without repetition."""
    values: list[int] = []
    for part in text.split(","):
        values += _range(part.strip(), name) if ".." in part else [count(part, name)]
    return tuple(dict.fromkeys(values))


def counts_or_auto(text: str, name: str) -> tuple[int | None, ...]:
    """As `counts`, where a part may also be `auto`, which becomes None."""
    values: list[int | None] = []
    for part in text.split(","):
        values += [None] if part.strip().lower() == "auto" else counts(part, name)
    return tuple(dict.fromkeys(values))


def words(text: str, name: str, allowed: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """A comma list of words, each one of `allowed` where that is given."""
    values = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for value in values:
        if not value or (allowed is not None and value not in allowed):
            wanted = f"one of {', '.join(allowed)}" if allowed else "a name"
            raise SelectorError(f"{name}: {value!r} is not {wanted}")
    return values
