"""Standard output and error of a command: what happens to its words must not change what it did.

A reader that leaves (`| head`) ends nothing: what is left to say is dropped, and the exit status is that of the work. A
character that the stream's encoding lacks is replaced. A full disk under standard output is a UserError.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from powerbench.errors import UserError

DEGRADE = "powerbench-degrade"  # the name of the handler of what an encoding lacks
PLAIN = {"±": "+-", "…": "...", "─": "-", "━": "-", "╸": "-", "╺": "-", "•": "*"}  # what rich draws among them


class _Sink(io.RawIOBase):
    """A descriptor from which the reader may go: from then on nothing is written.

    `loud`: other errors of the disk are raised, once; else they end the writing just so.
    """

    def __init__(self, descriptor: int, *, loud: bool) -> None:
        self._descriptor = descriptor
        self._loud = loud
        self._gone = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        while not self._gone:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # another process, at the other end of the terminal, has made it so
                select.select([], [self._descriptor], [])
            except BrokenPipeError:
                self._gone = True
            except OSError as error:
                self._gone = True
                if self._loud:
                    raise UserError(f"cannot write to standard output: {error.strerror}") from None
        return len(data)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Standard output and error as described above, within the context."""
    _open_missing()
    codecs.register_error(DEGRADE, _degraded)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _guard(sys.stdout, loud=True), _guard(sys.stderr, loud=False)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(UserError):  # flush before the end to hear of it
                stream.flush()
        sys.stdout, sys.stderr = before


def write_json(text: str) -> None:
    """JSON to standard output; characters that its encoding lacks are written as JSON's own escapes."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = "".join(char if char.isascii() else _escaped(char) for char in text)
    sys.stdout.write(text)


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _guard(stream: TextIO | None, *, loud: bool) -> TextIO:
    """The stream over the same descriptor. One that has none (a test's) stays as it is."""
    try:
        descriptor = stream.fileno() if stream else (1 if loud else 2)
    except (OSError, AttributeError, ValueError):
        assert stream
        return stream
    if stream:
        stream.flush()
    sink = _Sink(descriptor, loud=loud)
    encoding = stream.encoding if stream else "utf-8"
    buffered = io.BufferedWriter(sink)
    terminal = sink.isatty()
    return io.TextIOWrapper(buffered, encoding, DEGRADE, line_buffering=terminal or not loud)


def _degraded(error: UnicodeError) -> tuple[str, int]:
    """What stands for the characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(_plain(char) for char in found), error.end


def _plain(char: str) -> str:
    if 0xDC80 <= ord(char) <= 0xDCFF:  # a byte of a file name that is no UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return PLAIN.get(char, "?")


def _open_missing() -> None:
    """A descriptor of standard input, output or error that is closed (`>&-`) would be the next file's: take it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
