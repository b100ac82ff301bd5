"""Errors that the command line prints as one line: the user's to mend (exit status 2), a lost device (1), ours (70)."""

from __future__ import annotations

import os
import traceback

INTERNAL = 70  # the exit status of an error of powerbench itself, as EX_SOFTWARE of sysexits.h: no verdict of `check`
TRACEBACK = "POWERBENCH_TRACEBACK"  # a variable of the environment: where set, such an error shows where it happened


class UserError(ValueError):
    """Bad input. The message is one line that says what was wrong, what it was and what is allowed."""


class DeviceLostError(RuntimeError):
    """The device no longer answers, after an illegal access for example: this process can measure nothing more."""


def internal(error: Exception) -> str:
    """What is said of an error that is nobody's to mend but powerbench's: a line, and on request its traceback."""
    if isinstance(error, MemoryError):
        return "out of memory: this machine has less than the command needs"
    said = f"internal error: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
    if os.environ.get(TRACEBACK):
        return f"{''.join(traceback.format_exception(error))}{said}"
    return f"{said}; a fault of powerbench: please report it with what {TRACEBACK}=1 shows"
