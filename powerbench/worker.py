"""The measuring process, and the handle by which the parent asks it.

It is spawned, hosts a `powerbench.bench.Bench`, answers one request at a time, and is used again for case after case,
so that torch is imported once. Whatever a contestant does to it (abort, exit, hang, an illegal access) costs this
process and the case in flight: the parent ends it and starts another. It shows nothing on the terminal; what was
printed last is the message of its death.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from powerbench.device import Device
from powerbench.errors import DeviceLostError
from powerbench.problem import Case
from powerbench.results.model import Status
from powerbench.telemetry import gauge
from powerbench.timing import Method

if TYPE_CHECKING:
    from powerbench.bench import Bench, Reply

START_SECONDS = 300.0  # for Python, torch and a CUDA context on a slow disk
END_SECONDS = 30.0  # for the system to clear away a killed process
READY = "ready"


@dataclass(frozen=True)
class Setup:
    """What a worker measures with. Kernels cannot be sent: `kernels` is `module:function` of what returns the table."""

    device: Device
    seed: int
    method: Method
    kernels: str = "powerbench.kernels.table:available"

    def bench(self) -> Bench:
        """The bench itself, in this process."""
        from powerbench.bench import Bench  # noqa: PLC0415  in a worker, not before its output is turned away

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

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self._output = tempfile.NamedTemporaryFile(prefix="powerbench-worker-")  # noqa: SIM115  closed by `close`
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._output.name, setup))
        self._process.start()
        theirs.close()  # so that its death is the end of the pipe
        try:
            self._receive(START_SECONDS)
        except WorkerLost as lost:
            raise DeviceLostError(f"no process to measure in can be started: {lost.message}") from None
        except BaseException:  # Ctrl-C while it starts
            self.close()
            raise

    def ask(self, verb: str, case: Case, argument: int | bool, timeout_s: float) -> Reply:
        """One request. Raises WorkerLost when the process does not live to answer it within `timeout_s` seconds."""
        try:
            self._connection.send((verb, case, argument))
        except OSError:
            raise self._death() from None
        return self._receive(timeout_s)

    def close(self) -> None:
        """End the process, whatever it is doing; what it measured has been handed over."""
        self._process.kill()
        self._process.join(END_SECONDS)
        self._connection.close()
        self._output.close()

    def _receive(self, timeout_s: float) -> Reply:
        try:
            if self._connection.poll(timeout_s):
                reply: Reply = self._connection.recv()
                return reply
        except (EOFError, OSError):
            raise self._death() from None
        self.close()
        raise WorkerLost("timeout", f"no answer within the {timeout_s:.3g} s left to this case; it was ended")

    def _death(self) -> WorkerLost:
        self._process.join(END_SECONDS)
        code = self._process.exitcode
        last = self._last_words()
        self.close()
        return WorkerLost("failed", f"the process {_how(code)}{f': {last}' if last else ''}")

    def _last_words(self) -> str:
        with open(self._output.name, "rb") as output:
            output.seek(max(0, os.fstat(output.fileno()).st_size - 4096))
            lines = output.read().decode(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _how(code: int | None) -> str:
    if code is None:
        return "closed its connection"
    if code >= 0:
        return f"exited with status {code}"
    hint = " (as the system does when memory runs out)" if -code == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{hint}"


def serve(connection: Connection, output: str, setup: Setup) -> None:
    """The worker's main: answer until the parent closes the connection."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they may reach the whole group; the parent decides
        signal.signal(one, signal.SIG_IGN)
    _die_with_parent()
    if setup.device.type == "cpu":
        _keep_memory()
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, sys.__stdout__.fileno() if sys.__stdout__ else 1)
    os.dup2(file, sys.__stderr__.fileno() if sys.__stderr__ else 2)
    bench = setup.bench()
    if setup.device.type == "cuda":
        import torch  # noqa: PLC0415

        torch.cuda.synchronize()  # a device that is gone shows now
    connection.send(READY)
    while True:
        try:
            verb, case, argument = connection.recv()
        except EOFError:
            return
        connection.send(bench.answer(verb, case, argument))


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
