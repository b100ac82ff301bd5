"""The largest numbers that commands and TOML files take: well above what anybody measures, well below what hangs.

One table, so that an option, a suite, a model's file and a demand refuse the same numbers by the same words.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import click

from powerbench.errors import UserError

TOKENS = 2**40  # of a context, a batch of them, a window or a chunk

# key of a suite, of a model's shape, or option -> its largest value; the smallest is 1 where nothing else is said
LARGEST: dict[str, int] = {
    "p": 64,
    "ctx": TOKENS,
    "chunk": TOKENS,
    "tokens": TOKENS,
    "window": TOKENS,
    "d_tile": 2**16,
    "head_dim": 2**16,
    "value_dim": 2**16,
    "heads": 2**16,
    "kv_heads": 2**16,
    "batch": 2**30,
    "minutes": 10**6,
    "layers": 10**5,
    "d_model": 2**24,
    "d_ff": 2**26,
    "vocab": 2**26,
    "mlp_matrices": 100,
    "full_every": 10**5,
    "parameters": 10**18,
    "seed": 2**63 - 1,
    "visits": 1000,
    "allow_inconclusive": 10**9,
}
VALUES = 1000  # of one selector: of a list, or points of a range
CASES = 20_000  # of a sweep: the product of its selectors, for one kernel
TIMEOUT_SECONDS = 7 * 24 * 3600.0
DEMAND = 1e9  # milliseconds, times as fast ...
DIGITS = 30  # of a number: Python refuses, and takes its time over, those of thousands


def number(text: str, what: str, most: float, unit: str = "") -> float:
    """A positive number of at most `most`. Raises UserError, one line that begins with `what`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= most:
        raise UserError(f"{what}: {text[:40]!r} is not a number above 0 and up to {most:.15g}{unit and ' ' + unit}")
    return value


def option(key: str, least: int = 1) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    """A callback of click for an option that takes a whole number, None where it is not given."""
    return lambda context, parameter, text: None if text is None else whole(text, parameter.opts[0], key, least)


def seconds(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """The callback of click for --timeout."""
    return None if text is None else number(text, parameter.opts[0], TIMEOUT_SECONDS, "seconds")


def whole(text: str, what: str, key: str, least: int = 1) -> int:
    """A whole number from `least` to the largest of `key`. Raises UserError, one line that begins with `what`."""
    digits = text.strip().removeprefix("+")
    most = LARGEST[key]
    if not (digits.isascii() and digits.isdigit()) or len(digits) > DIGITS or not least <= int(digits) <= most:
        raise UserError(f"{what}: {text.strip()[:40]!r} is not a whole number from {least} to {most}")
    return int(digits)
