"""The grammar of selectors, shared by the command line and the TOML suites.

A numeric selector is a value (`64k` = 65536), a comma list (`8,16`), or a range: `1k..64k` doubles and always holds its
end (`1k..3k` is 1k, 2k, 3k), `1k..64k:8` takes eight points evenly spaced in log space, rounded to integers. `auto`
leaves the choice to the kernel. What is larger than `powerbench.bounds` allows is refused.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from powerbench.bounds import DIGITS, TOKENS, VALUES
from powerbench.errors import UserError
from powerbench.outputs import shown

SUFFIX = {"": 1, "k": 1024, "m": 1024**2}
TOML_BYTES = 2**20
LONG_TEXT = 40  # characters that a message repeats
Sized = TypeVar("Sized", bound=Sequence[Any])
_NUMBER = re.compile(r"([0-9]+)([kKmM]?)")


class SelectorError(UserError):
    """A selector that cannot be read: the message names it, what it was and what is allowed."""


def toml(path: Path, name: str) -> dict[str, Any]:
    """The content of a TOML file. Raises SelectorError, which begins with `name`, also for what is absurdly large."""
    try:
        if path.stat().st_size > TOML_BYTES:
            raise SelectorError(f"{name}: larger than {TOML_BYTES} bytes, too large for a file of settings")
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise SelectorError(f"{name}: nested too deeply") from None
    except (OSError, ValueError) as error:  # of TOML, of UTF-8, or of a number with thousands of digits
        if isinstance(error, SelectorError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SelectorError(f"{shown(name)}: {reason}") from None
    if _has_huge_number(table):
        raise SelectorError(f"{name}: holds a number of more than {DIGITS} digits")
    return table


def _has_huge_number(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_huge_number, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) >= 10**DIGITS


def count(text: str, name: str, most: int = TOKENS) -> int:
    """One positive integer with an optional k or m suffix (binary: 8k = 8192), of at most `most`."""
    match = _NUMBER.fullmatch(text.strip())
    if match and len(match[1].lstrip("0")) > DIGITS:
        value = most + 1
    else:
        value = int(match[1].lstrip("0") or 0) * SUFFIX[match[2].lower()] if match else 0
    if value < 1:
        raise SelectorError(
            f"{name}: {_quoted(text)} is not a positive integer such as 64, 8k (= 8192), 1m, "
            "a list 8,16 or a range 1k..64k"
        )
    if value > most:
        raise SelectorError(f"{name}: {_quoted(text)} is too large; at most {most} is allowed")
    return value


def _quoted(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= LONG_TEXT else f"{text[:LONG_TEXT]}...")


def _range(text: str, name: str, most: int) -> list[int]:
    bounds, _, points = text.partition(":")
    first, _, last = bounds.partition("..")
    low, high = count(first, name, most), count(last, name, most)
    if low > high:
        raise SelectorError(f"{name}: the range {_quoted(text)} runs downwards; write the smaller end first")
    if not points:
        values = [low]
        while values[-1] * 2 < high:
            values.append(values[-1] * 2)
        return [*values, high] if high > low else values
    number = count(points, name)
    if not 2 <= number <= VALUES:
        raise SelectorError(f"{name}: the range {_quoted(text)} needs at least 2 points, and at most {VALUES}")
    step = (high / low) ** (1 / (number - 1))
    return [*(round(low * step**i) for i in range(number - 1)), high]


def counts(text: str, name: str, most: int = TOKENS) -> tuple[int, ...]:
    """A value, a comma list or a range, as integers in the order written, without repetition."""
    values: list[int] = []
    for part in _parts(text, name):
        values += _range(part.strip(), name, most) if ".." in part else [count(part, name, most)]
    return _few(tuple(dict.fromkeys(values)), name)


def counts_or_auto(text: str, name: str, most: int = TOKENS) -> tuple[int | None, ...]:
    """As `counts`, where a part may also be `auto`, which becomes None."""
    values: list[int | None] = []
    for part in _parts(text, name):
        values += [None] if part.strip().lower() == "auto" else counts(part, name, most)
    return _few(tuple(dict.fromkeys(values)), name)


def _parts(text: str, name: str) -> list[str]:
    return list(_few(text.split(","), name))


def _few(values: Sized, name: str) -> Sized:
    if len(values) > VALUES:
        raise SelectorError(f"{name}: {len(values)} values are too many; at most {VALUES} are allowed")
    return values


def words(text: str, name: str, allowed: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """A comma list of words, each one of `allowed` where that is given."""
    values = tuple(dict.fromkeys(part.strip() for part in _parts(text, name)))
    for value in values:
        if not value or (allowed is not None and value not in allowed):
            wanted = f"one of {', '.join(allowed)}" if allowed else "a name"
            raise SelectorError(f"{name}: {_quoted(value)} is not {wanted}")
    return values
