"""What is said between a sweep and its measuring process: the questions, the answers, and how they are framed.

A message is its length in four bytes and then msgpack, which carries values and no code. The parent reads against a
deadline that holds for the whole message, takes no message longer than LIMIT, and takes only an answer of the right
type to the question that it asked; anything else is a `MalformedError`.
"""

from __future__ import annotations

import math
import socket
import struct
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from powerbench.problem import Case
from powerbench.results.model import Phase, Status
from powerbench.telemetry import UNAVAILABLE, Reading

Verb = Literal["open", "sample", "close"]

HEADER = struct.Struct(">I")
LIMIT = 2**22  # bytes; the longest honest answer has the samples of some dozen phases, a few kilobytes each
WATCH_SECONDS = 0.1  # between two looks at whether the other process still lives


class MalformedError(Exception):
    """What arrived is no answer to the question. The message goes on from `the process`."""


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """A case that passed its gate and may be sampled. Times in ms; `timer` None where nothing is to be timed."""

    error: float
    tolerance: float
    config: dict[str, str]
    timer: str | None = None
    timer_reason: str | None = None
    wall_ms: tuple[float, ...] = ()
    peak_memory_bytes: int | None = None


class Sampled(msgspec.Struct, frozen=True, tag="sampled"):
    """More samples, in ms, and the state of the GPU over them. `calls`: of how many calls each is the mean."""

    ms: tuple[float, ...]
    state: Reading = UNAVAILABLE
    calls: int = 1


class Closed(msgspec.Struct, frozen=True, tag="closed"):
    """The results were still right after the last sample. `lost`: a phase has cost this process the device."""

    phases: tuple[Phase, ...] = ()
    lost: bool = False


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """The case ends without a number. `lost`: nothing more can be measured in this process."""

    status: Status
    message: str
    error: float | None = None
    tolerance: float | None = None
    lost: bool = False


class Spoilt(msgspec.Struct, frozen=True, tag="spoilt"):
    """The inputs of all contestants (`names`) were written to, by which of several is not known."""

    names: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The process has its kernels and its device, and may be asked."""


Reply = Opened | Sampled | Closed | Fault | Spoilt


class Question(msgspec.Struct, frozen=True):
    """What the parent asks for: open (argument: timed), sample (how many) or close (with phases).

    `seed` is drawn by the parent when it asks: what is checked by it cannot be known before.
    """

    number: int
    verb: Verb
    case: Case
    argument: int | bool
    seed: int


class Answer(msgspec.Struct, frozen=True):
    """The reply to the question of that number."""

    number: int
    reply: Opened | Sampled | Closed | Fault | Spoilt | Ready


_ANSWERS = msgspec.msgpack.Decoder(Answer)
_KINDS: dict[str, tuple[type, ...]] = {
    "open": (Opened, Fault, Spoilt), "sample": (Sampled, Fault, Spoilt), "close": (Closed, Fault, Spoilt),
    "start": (Ready,),
}  # fmt: skip


def read_answer(message: bytes, question: Question | None) -> Reply | Ready:
    """The reply to `question` (None: to being started). Raises MalformedError for anything else."""
    try:
        answer = _ANSWERS.decode(message)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError(f"sent what is no answer ({error})") from None
    number, verb = (question.number, question.verb) if question else (0, "start")
    reply = answer.reply
    if answer.number != number or not isinstance(reply, _KINDS[verb]):
        raise MalformedError(f"sent an answer ({type(reply).__name__}) to another question than {verb}")
    if isinstance(reply, Sampled) and question:
        good = all(math.isfinite(ms) and ms > 0 for ms in reply.ms) and reply.calls >= 1
        if not good or len(reply.ms) != question.argument:
            raise MalformedError(f"sent samples that are none, or not the {question.argument} asked for")
    return reply


class Channel:
    """One end of the connection. Raises EOFError or OSError where the other end is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, message: bytes, timeout_s: float | None = None) -> None:
        """Raises TimeoutError where it is not taken in time."""
        self._connection.settimeout(None if timeout_s is None else max(timeout_s, WATCH_SECONDS))
        self._connection.sendall(HEADER.pack(len(message)) + message)

    def receive(self, timeout_s: float = math.inf, ended: Callable[[], bool] = lambda: False) -> bytes:
        """One whole message, within `timeout_s` seconds, else TimeoutError; MalformedError for one that is too long.

        `ended`: whether the other process has ended. What it sent before is still read; but it is not waited for what
        others may send that hold its end of the connection.
        """
        deadline = time.monotonic() + timeout_s
        size = HEADER.unpack(self._exactly(HEADER.size, deadline, ended))[0]
        if size > LIMIT:
            raise MalformedError(f"announced a message of {size} bytes, {LIMIT} allowed")
        return self._exactly(size, deadline, ended)

    def has_more(self) -> bool:
        """Whether something has been sent that nobody asked for."""
        self._connection.settimeout(0)
        try:
            return bool(self._connection.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """This end is gone, then."""
        self._connection.close()

    def _exactly(self, number: int, deadline: float, ended: Callable[[], bool]) -> bytes:
        found = bytearray()
        while len(found) < number:
            last, left = ended(), deadline - time.monotonic()
            self._connection.settimeout(0 if last or left <= 0 else min(left, WATCH_SECONDS))
            try:
                part = self._connection.recv(number - len(found))
            except (BlockingIOError, TimeoutError):
                if last:
                    raise EOFError from None
                if left <= 0:
                    raise TimeoutError from None
                continue
            if not part:
                raise EOFError
            found += part
            if left <= 0 and len(found) < number:  # else who sends byte by byte is waited for
                raise TimeoutError
        return bytes(found)
