"""Processes that check problems, side by side; one that dies or hangs costs its problem, and is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from powerbench.errors import DeviceLostError
from powerbench.fuzz.problem import FuzzProblem

START_SECONDS = 300.0  # for Python, torch and a CUDA context beside many others
LAST_WORDS = 2000  # bytes of a dead worker's standard error that are looked at

Reply = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Where problems run: device cpu or cuda, backend auto, torch or triton; seconds that one problem may take."""

    device: str
    backend: str
    timeout_s: float

    @property
    def interpreted(self) -> bool:
        """Whether Triton's interpreter runs the kernels."""
        return self.device == "cpu" and self.backend == "triton"

    def environment(self) -> dict[str, str]:
        """Of the processes."""
        return {**os.environ, **({"TRITON_INTERPRET": "1"} if self.interpreted else {})}


class Worker:
    """One process, started again after each death. Raises DeviceLostError where none can be started."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._process: subprocess.Popen[str] | None = None
        self._output: Any = None
        self.hello: Reply = {}

    @property
    def timeout_s(self) -> float:
        """Seconds that a problem may take."""
        return self._target.timeout_s

    def ask(self, problem: FuzzProblem, timeout_s: float | None = None) -> Reply:
        """The problem's line of the log; status died or timeout where the process did not give one."""
        process = self._process or self._start()
        limit, start = timeout_s or self._target.timeout_s, time.monotonic()
        request = {"problem": problem.text(), "device": self._target.device, "backend": self._target.backend}
        try:
            print(json.dumps(request), file=process.stdin, flush=True)
        except OSError:  # it is dead already
            reply, late = None, False
        else:
            reply, late = self._receive(limit)
        if reply is None:
            message = f"no answer within {limit:g} s" if late else self._death()
            reply = {"status": "timeout" if late else "died", "message": message, "problem": problem.text(),
                     "seconds": round(time.monotonic() - start, 3)}  # fmt: skip
        if self._process is not None and (reply["status"] in ("died", "timeout") or reply.get("lost")):
            self.close()
        return reply

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, self._output):
                assert stream is not None
                with suppress(OSError):  # of what was still to be written to a dead process
                    stream.close()

    def _start(self) -> subprocess.Popen[str]:
        self._output = tempfile.TemporaryFile(prefix="powerbench-fuzz-")  # noqa: SIM115  closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "powerbench.fuzz.worker"], env=self._target.environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._output,
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
        )  # fmt: skip
        hello, _ = self._receive(START_SECONDS)
        if hello is None:
            message = self._death()
            self.close()
            raise DeviceLostError(f"no process for random problems can be started: {message}")
        self.hello = hello
        return self._process

    def _receive(self, timeout_s: float) -> tuple[Reply | None, bool]:
        """The next line, None where there is none; and whether the time was over."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout_s, end)
        timer.start()
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
        return (json.loads(line) if line.endswith("\n") else None), late.is_set()

    def _death(self) -> str:
        """How the process ended, and what it printed last."""
        assert self._process is not None
        status = self._process.wait()
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - LAST_WORDS))
        lines = [line.strip() for line in self._output.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"the process ended with {how}" + (f": {lines[-1]}" if lines else "")


class Pool:
    """`workers` workers, which take groups of problems, each the next that nobody has taken."""

    def __init__(self, target: Target, workers: int) -> None:
        self._workers = [Worker(target) for _ in range(workers)]
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []

    def run(
        self,
        groups: Iterator[Sequence[FuzzProblem]],
        done: Callable[[FuzzProblem, Reply, Worker], None],
        deadline: float | None,
    ) -> None:
        """`done` for each problem, called by several threads, with the worker that may be asked more about it.

        deadline: on the monotonic clock; after it no problem is begun, and those in flight are ended.
        """
        threads = [threading.Thread(target=self._work, args=(w, groups, done, deadline)) for w in self._workers]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
        finally:
            self._stop.set()
            for worker in self._workers:
                worker.close()
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]

    def _work(
        self,
        worker: Worker,
        groups: Iterator[Sequence[FuzzProblem]],
        done: Callable[[FuzzProblem, Reply, Worker], None],
        deadline: float | None,
    ) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    group = next(groups, None)
                if group is None:
                    return
                for problem in group:
                    left = None if deadline is None else deadline - time.monotonic()
                    if self._stop.is_set() or (left is not None and left <= 0):
                        return
                    reply = worker.ask(problem, within(left, worker))
                    cut_short = reply["status"] == "timeout" and deadline is not None and time.monotonic() >= deadline
                    if not self._stop.is_set() and not cut_short:
                        done(problem, reply, worker)
        except BaseException as error:  # told by `run`, in the thread that waits
            self._errors.append(error)
            self._stop.set()


def within(left_s: float | None, worker: Worker) -> float:
    """How long a worker may take, with so many seconds left."""
    limit = worker.timeout_s
    return limit if left_s is None else max(0.1, min(limit, left_s))
