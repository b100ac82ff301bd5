"""Text from elsewhere, made fit for where it goes: run files, kernels' names and errors may hold anything.

`printable` is for whatever people look at. What it takes out is shown as an escape (`\\x1b`, `\\u202e`), so that it is
seen and does nothing: control and format characters, separators of lines, characters that no font shows, halves of
surrogate pairs, more accents than belong on a letter, and what a runner of jobs takes for a command to itself. The
other functions are for formats with rules of their own, and all but JSON's use `printable` too. JSON keeps its values:
there the same characters are written as JSON's own escapes.
"""

from __future__ import annotations

import html
import re
import shlex
import unicodedata
from collections.abc import Iterable

ACCENTS = 4  # combining characters in a row; Vietnamese needs two, Hebrew with cantillation four

# Of no width or of no ink, although Unicode calls them letters, marks or symbols: fillers, joiners, variation selectors
# and the empty pattern of braille.
_INVISIBLE = frozenset(
    map(
        chr,
        (
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
            *range(0x180B, 0x1810),
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ),
    )
)
# GitHub's runner takes `::name ...::` at the start of a line for a command (and a table may break a line anywhere), and
# `##[name]` anywhere; Azure's takes `##vso[`, TeamCity's `##teamcity[`. Any `::` that begins a word counts, since more
# names may come, but those of C++ (`at::native`) stay as they are.
_COMMAND_NAMES = (
    "error|warning|notice|debug|group|endgroup|add-mask|add-matcher|remove-matcher|add-path|set-env|set-output|"
    "save-state|stop-commands|echo|internal-[a-z-]+"
)
_WORKFLOW = re.compile(rf"(?<!\S)::(?=\S)|::(?=(?:{_COMMAND_NAMES})\b)|##(?=\w*\[)", re.IGNORECASE)
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
# Where a separator of other locales is a semicolon, a cell begins after each.
_FORMULA_INSIDE = re.compile(r"(;\s*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")
# What GitHub makes a link or a mention of, without any markup: people and teams, addresses, issues, commits, formulas.
_LINKED = re.compile(
    r"@|://|www\.|[$]|#\d|\b(?:gh|mailto|xmpp)[-:]|\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{7,40}\b", re.I
)
_MARKS = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in "\\`*_[]|#~!{}"}
)  # fmt: skip


class _Escapes(dict[int, str]):
    """For `str.translate`: each character, or its escape; filled as they come."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        shown = char.isprintable() and char not in _INVISIBLE
        self[code] = char if shown else escaped(char)
        return self[code]


_ESCAPES = _Escapes()


def printable(text: str) -> str:
    """One line of text that shows all that it holds, and moves, hides and starts nothing. The same when done again."""
    if not (text.isascii() and text.isprintable()):
        text = _without_towers(text.translate(_ESCAPES))
    if "::" in text or "##" in text:
        text = _WORKFLOW.sub(lambda found: " ".join(found[0]), text)
    return text


def printable_lines(text: str) -> str:
    """The same of a text of several lines, such as a finished table."""
    return text if text.isascii() and _plain(text) else "\n".join(map(printable, text.split("\n")))


def _plain(text: str) -> bool:
    return text.replace("\n", "").isprintable() and "::" not in text and "##" not in text


def escaped(char: str) -> str:
    """The character as Python's own literals write it."""
    code = ord(char)
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char)
    return named or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def _without_towers(text: str) -> str:
    """Accents beyond those that one letter can have, which reach over the lines above, as escapes."""
    if text.isascii():
        return text
    found: list[str] = []
    height = 0
    for char in text:
        height = height + 1 if unicodedata.category(char) in ("Mn", "Me") else 0
        found.append(char if height <= ACCENTS else escaped(char))
    return "".join(found)


def printable_json(text: str) -> str:
    """Finished JSON with JSON's escapes for what `printable` would take out: every value stays what it is."""
    if not (text.isascii() and _plain(text)):
        text = "".join(char if char == "\n" or _ESCAPES[ord(char)] == char else json_escape(char) for char in text)
    return text.replace("##", "#\\u0023").replace("::", ":\\u003a")


def json_escape(char: str) -> str:
    """The character as JSON's `\\uXXXX`, or two of them."""
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def csv_cell(text: str) -> str:
    """Text for a cell, before its quotes: no spreadsheet takes it for a formula. A number stays one."""
    text = printable(text)
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        text = f"'{text}"
    return _FORMULA_INSIDE.sub(r"\1'", text) if ";" in text else text


def html_text(text: str) -> str:
    """Text for HTML, between tags and in attributes."""
    return html.escape(printable(text))


def plotly_text(text: str) -> str:
    """Text for plotly, which reads a little HTML and links, and puts values of the trace in the place of `%{name}`."""
    return html_text(text).replace("%{", "&#37;{")


def markdown_text(text: str) -> str:
    """Text that shows as itself on GitHub: no markup, HTML, link, mention, formula; no end of a cell or line.

    Words that GitHub would make something of even so stand as code, in which it makes nothing of anything.
    """
    words = printable(text).split(" ")
    return " ".join(markdown_code(word) if _LINKED.search(word) else word.translate(_MARKS) for word in words)


def markdown_code(text: str) -> str:
    """Text as code, fit for a cell of a table; a backtick, which would end it, becomes an apostrophe."""
    text = printable(text).replace("`", "'").replace("|", "\\|")
    return f"`{text}`" if text.strip() else ""


def command_line(words: Iterable[str]) -> str:
    """Words as a command to be copied into a shell: each one word there, and nothing that a terminal acts on."""
    return shlex.join(map(printable, words))
