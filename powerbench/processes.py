"""Processes that end together: signals that ask for an end are interrupts, and children do not outlive their parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork


def interrupt_on_end_signals() -> None:
    """Let SIGTERM and SIGHUP do what Ctrl-C does, once: what cleans up is not interrupted by the next of them.

    One that is ignored already, as SIGHUP under nohup, stays so.
    """
    for one in END_SIGNALS:
        if signal.getsignal(one) is not signal.SIG_IGN:
            signal.signal(one, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for one in END_SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def end_with_parent() -> Callable[[], None]:
    """What a child calls before it executes a program: on Linux it is killed when this process ends."""
    parent = os.getpid()

    def arrange() -> None:
        if _LIBC:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it has ended already
                os._exit(1)

    return arrange


@contextlib.contextmanager
def child(arguments: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process in a group of its own, which is killed when the context ends; and the process when this one does."""
    with subprocess.Popen(arguments, process_group=0, preexec_fn=end_with_parent(), **options) as process:  # noqa: PLW1509
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
