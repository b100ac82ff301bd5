"""The measuring process, and the handle by which the parent asks it.

It is a Python of its own, hosts a `powerbench.bench.Bench`, answers one question at a time (`powerbench.protocol`), and
is used again for case after case, so that torch is imported once. Whatever a contestant does to it (abort, exit, hang,
an illegal access, writing to its connection) costs this process and the case in flight: the parent ends it, with what
it has started, and starts another. It shows nothing on the terminal; what was printed last is the message of its death.

This keeps mistakes apart from measurements. It is no sandbox: a contestant runs with the rights of the user.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

import msgspec

from powerbench.device import Device
from powerbench.errors import DeviceLostError
from powerbench.problem import Case
from powerbench.protocol import (
    LIMIT,
    Answer,
    Channel,
    Fault,
    MalformedError,
    Question,
    Ready,
    Reply,
    Verb,
    read_answer,
)
from powerbench.results.model import Status
from powerbench.telemetry import gauge
from powerbench.timing import Method

if TYPE_CHECKING:
    from powerbench.bench import Bench

START_SECONDS = 300.0  # for Python, torch and a CUDA context on a slow disk
END_SECONDS = 1.5  # for the system to clear away a killed process; what takes longer is waited for before the next one
CLEAR_SECONDS = 30.0  # which may be the memory of a GPU
EXIT_SECONDS = 0.3  # between the end of the connection and that of the process
OUTPUT_BYTES = 2**20  # of what contestants print; then it begins anew, so that no disk fills
# The parent's sys.path, so that both find the same packages; not the folder it was started in, unless that is on it.
START = "import sys; sys.path[:] = sys.argv[2:]; number = int(sys.argv[1]); del sys.argv[1:]"
START += "; from powerbench.worker import main; main(number)"


@dataclass(frozen=True)
class Setup:
    """What a worker measures with. Kernels cannot be sent: `kernels` is `module:function` of what returns the table."""

    device: Device
    seed: int
    method: Method
    kernels: str = "powerbench.kernels.table:available"

    def bench(self) -> Bench:
        """The bench itself, in this process."""
        from powerbench.bench import Bench  # noqa: PLC0415  in a worker, before it imports other people's kernels

        module, _, name = self.kernels.partition(":")
        kernels = getattr(import_module(module), name)()
        return Bench(self.device, self.seed, kernels, self.method, gauge(self.device.uuid()))


class WorkerLost(Exception):  # noqa: N818  not an error of powerbench: the fate of a case
    """The worker died or had to be ended. `status` and `message` are the row of the case in flight."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Worker:
    """The parent's handle. Raises DeviceLostError where no worker can be started."""

    _ending: ClassVar[list[subprocess.Popen[bytes]]] = []  # killed, and not yet gone

    def __init__(self, setup: Setup) -> None:
        self._asked, self._is_closed = 0, False
        try:
            _wait_for(self._ending)
            self._start()
        except OSError as error:
            raise DeviceLostError(f"no process to measure in can be started: {error}") from None
        try:
            self._exchange(msgspec.msgpack.encode(setup), None, START_SECONDS)
        except WorkerLost as lost:
            raise DeviceLostError(f"no process to measure in can be started: {lost.message}") from None
        except BaseException:  # Ctrl-C while it starts
            self.close()
            raise

    def _start(self) -> None:
        self._output = tempfile.TemporaryFile(prefix="powerbench-worker-")  # noqa: SIM115  closed by `close`
        output = self._output.fileno()
        fcntl.fcntl(output, fcntl.F_SETFL, fcntl.fcntl(output, fcntl.F_GETFL) | os.O_APPEND)  # for `_forget`
        ours, theirs = socket.socketpair()
        with theirs:  # so that its death is the end of the connection
            paths = [path for path in sys.path if isinstance(path, str)]
            # A session of its own: Ctrl-C at the terminal reaches the parent alone, which decides, and what a
            # contestant starts is ended with it.
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, str(theirs.fileno()), *paths],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )  # fmt: skip
        self._channel = Channel(ours)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, verb: Verb, case: Case, argument: int | bool, timeout_s: float) -> Reply:
        """One question. Raises WorkerLost when the process does not live to answer it within `timeout_s` seconds."""
        self._asked += 1
        question = Question(self._asked, verb, case, argument, secrets.randbits(63))
        reply = self._exchange(msgspec.msgpack.encode(question), question, timeout_s)
        assert not isinstance(reply, Ready)
        return reply

    def close(self) -> None:
        """End the process and its group, whatever they are doing; what it measured has been handed over."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # before it is waited for: its number is not another's yet
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._ending.append(self._process)
        self._channel.close()
        self._output.close()

    def _exchange(self, message: bytes, question: Question | None, timeout_s: float) -> Reply | Ready:
        deadline = time.monotonic() + timeout_s
        try:
            if self._channel.has_more():
                raise MalformedError("wrote to its connection unasked")
            self._channel.send(message, timeout_s)
            reply = read_answer(self._channel.receive(deadline - time.monotonic(), self._has_ended), question)
        except MalformedError as error:
            self.close()
            raise WorkerLost("failed", f"the process {error}; it was ended") from None
        except TimeoutError:
            self.close()
            message_ = f"no answer within the {timeout_s:.3g} s left to this case; it was ended"
            raise WorkerLost("timeout", message_) from None
        except (EOFError, OSError):
            raise self._death() from None
        self._forget()
        return reply

    def _has_ended(self) -> bool:
        """Whether the process itself is dead, whoever holds its connection. It stays a zombie until `close`."""
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # waited for already
            return True

    def _death(self) -> WorkerLost:
        deadline = time.monotonic() + EXIT_SECONDS
        while not (ended := self._has_ended()) and time.monotonic() < deadline:
            time.sleep(0.01)
        last = self._last_words()
        self.close()
        how = _how(self._process.returncode if ended else None)
        return WorkerLost("failed", f"the process {how}{f': {last}' if last else ''}")

    def _last_words(self) -> str:
        output = self._output.fileno()
        tail = os.pread(output, 4096, max(0, os.fstat(output).st_size - 4096))
        lines = tail.decode(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

    def _forget(self) -> None:
        if os.fstat(self._output.fileno()).st_size > OUTPUT_BYTES:
            os.ftruncate(self._output.fileno(), 0)


def _wait_for(ending: list[subprocess.Popen[bytes]]) -> None:
    """Until killed processes have given back their memory; not for ever."""
    deadline = time.monotonic() + CLEAR_SECONDS
    while ending:
        with contextlib.suppress(subprocess.TimeoutExpired):
            ending.pop().wait(max(0.0, deadline - time.monotonic()))


def _how(code: int | None) -> str:
    if code is None:
        return "closed its connection, and was ended"
    if code >= 0:
        return f"exited with status {code}"
    hint = " (as the system does when memory runs out)" if -code == signal.SIGKILL else ""
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = f"signal {-code}"
    return f"was ended by {name}{hint}"


def main(descriptor: int) -> None:
    """The worker's main: answer until the parent closes the connection."""
    os.set_inheritable(descriptor, False)  # what a contestant starts does not hold it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _die_with_parent()
    channel = Channel(socket.socket(fileno=os.dup(descriptor)))  # the other stays open until the process has ended
    with contextlib.suppress(EOFError):
        _serve(channel)


def _serve(channel: Channel) -> None:
    setup = msgspec.msgpack.decode(channel.receive(), type=Setup)
    if setup.device.type == "cpu":
        _keep_memory()
    bench = setup.bench()
    if setup.device.type == "cuda":
        import torch  # noqa: PLC0415

        torch.cuda.synchronize()  # a device that is gone shows now
    channel.send(msgspec.msgpack.encode(Answer(0, Ready())))
    while True:
        question = msgspec.msgpack.decode(channel.receive(), type=Question)
        reply = bench.answer(question.verb, question.case, question.argument, question.seed)
        channel.send(_message(question.number, reply))


def _message(number: int, reply: Reply) -> bytes:
    message = msgspec.msgpack.encode(Answer(number, reply))
    if len(message) <= LIMIT:
        return message
    return msgspec.msgpack.encode(
        Answer(number, Fault("failed", f"an answer of {len(message)} bytes, {LIMIT} allowed"))
    )


def _keep_memory() -> None:
    """On glibc: memory that was freed is not given back to the system, but used again by the next call.

    Else a large tensor is either mapped anew on every call, page by page, or taken from memory at hand, and which it is
    depends on the sizes freed before: the same call is then slower in one process than in another, or changes over
    after a second. A GPU has its caching allocator.
    """
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if sys.platform == "linux" and mallopt:
        mallopt(m_arena_max, 1)  # the thread of the backward pass shares it; those of other arenas map what is large
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def _die_with_parent() -> None:
    """On Linux: a hung worker must not outlive a sweep that was killed, and keep its memory."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
