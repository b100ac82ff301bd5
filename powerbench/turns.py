"""Two sweeps in turns: only the one that holds the token works, and hands it on after each thing it did.

So their samples lie fractions of a second apart, and a machine that is slower for a second is so to both. The token is
a byte in a ring of pipes: each sweep reads it from one and writes it to the next. When a sweep ends, so do its pipes,
and the other goes on without waiting.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

VARIABLE = "POWERBENCH_TURNS"  # "3,4": the descriptors to read the token from and to write it to
TOKEN = b"."


@dataclass
class Turns:
    """This process's place in the ring."""

    receive: int
    send: int
    alone: bool = False

    @classmethod
    def of_environment(cls) -> Turns | None:
        """As `powerbench.check` passed it to this process; None: this sweep takes turns with no other."""
        text = os.environ.get(VARIABLE)
        if not text:
            return None
        receive, send = map(int, text.split(","))
        for descriptor in (receive, send):
            os.set_inheritable(descriptor, False)  # else a child that lives on would look like this sweep
        return cls(receive, send)

    def take(self) -> None:
        """Wait for the token."""
        if not self.alone and not os.read(self.receive, 1):
            self.alone = True

    def hand_on(self) -> None:
        """Let the other do one thing."""
        if self.alone:
            return
        with contextlib.suppress(BrokenPipeError):
            os.write(self.send, TOKEN)
        self.take()


@contextlib.contextmanager
def ring(number: int) -> Iterator[Sequence[tuple[int, int]]]:
    """The descriptors (receive, send) of each member; the first has the token. Pass them on, then leave the context."""
    pipes = [os.pipe() for _ in range(number)]
    os.write(pipes[0][1], TOKEN)
    try:
        yield [(pipes[i][0], pipes[(i + 1) % number][1]) for i in range(number)]
    finally:
        for pipe in pipes:
            for descriptor in pipe:
                os.close(descriptor)
