"""`powerbench verify --random N` and `--problem TEXT`: what they do and say, in the process that has no torch."""

from __future__ import annotations

import json
import os
import shlex
import threading
import time
from pathlib import Path
from typing import IO, Any

import click

from powerbench._version import __version__
from powerbench.errors import UserError
from powerbench.fuzz.draw import groups, limits
from powerbench.fuzz.options import Asked
from powerbench.fuzz.pool import Pool, Reply, Target, Worker, within
from powerbench.fuzz.problem import DTYPES, MAX_DEGREE, FuzzProblem, parse
from powerbench.fuzz.shrink import SECONDS, shrink
from powerbench.fuzz.summary import Summary
from powerbench.suites.grammar import counts, counts_or_auto, words

CPU_WORKERS, GPU_WORKERS = 4, 14  # at most: processes on one GPU share its memory
TIMEOUT_SECONDS = 300.0  # kernels compile, many at a time
STATUS_SECONDS = 10.0  # between lines that say how far it is
MOST_SHRUNK = 12  # failures; further ones are printed as they were drawn


def fuzz(asked: Asked, device: str, seed: int, timeout_s: float | None, selected: dict[str, Any]) -> int:
    """Check what is asked for; print each failure and a summary. Exit status 0: all are right; 1: one is not."""
    if asked.number and asked.problems:
        raise UserError("--random and --problem exclude each other")
    only = _only({name: value for name, value in selected.items() if value is not None}, asked)
    chosen = [parse(text) for text in asked.problems]

    from powerbench.device import pick  # noqa: PLC0415  torch, which is not needed to say what is wrong above

    target = Target(pick(device).type, asked.backend, timeout_s or TIMEOUT_SECONDS)
    if chosen:
        drawn, number = iter([[problem] for problem in chosen]), len(chosen)
    else:
        number = asked.number or 0
        drawn = groups(seed, number, limits(target.device, target.backend), only)
    deadline = None if asked.max_seconds is None else time.monotonic() + asked.max_seconds
    with _opened(asked.log) as log:
        run = _Run(target, number, seed, log, deadline, shrinks=not chosen)
        workers = min(number, asked.workers or _workers(target))
        try:
            Pool(target, workers).run(drawn, run.done, deadline)
        finally:
            run.summary.print()
    return 0 if run.summary.right else 1


def _only(selected: dict[str, Any], asked: Asked) -> dict[str, tuple[Any, ...]]:
    """The selectors that narrow what is drawn; UserError for those that do not."""
    names = {"p": "p", "head_dim": "d", "value_dim": "e", "d_tile": "d_tile", "dtype": "dtype"}
    for name in selected:
        if name not in names or asked.problems:
            raise UserError(
                f"--{name.replace('_', '-')} does not go with {'--problem' if asked.problems else '--random'}"
                + (
                    ""
                    if asked.problems
                    else "; what is drawn can be narrowed by --p, --head-dim, --value-dim, --d-tile, --dtype"
                )
            )
    only: dict[str, tuple[Any, ...]] = {}
    for name, text in selected.items():
        option = f"--{name.replace('_', '-')}"
        if name == "dtype":
            only["dtype"] = words(text, option, DTYPES)
        elif name == "d_tile":
            only["d_tile"] = tuple(x or 0 for x in counts_or_auto(text, option))
        else:
            only[names[name]] = counts(text, option)
    for p in only.get("p", ()):
        if p > MAX_DEGREE:
            raise UserError(f"--p is {p}; it must be from 1 to {MAX_DEGREE}")
    return only


def _workers(target: Target) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(1, cores - 2), GPU_WORKERS) if target.device == "cuda" else min(cores, CPU_WORKERS)


class _Log:
    """The file of --log, or nothing; a line is written whole, at once."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file
        self._lock = threading.Lock()

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def write(self, line: dict[str, Any]) -> None:
        """Append it."""
        if self._file:
            with self._lock:
                print(json.dumps(line), file=self._file, flush=True)


def _opened(path: str | None) -> _Log:
    try:
        return _Log(None if path is None else Path(path).open("a"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


class _Run:
    """What is done with each reply, by whichever thread has it."""

    def __init__(
        self, target: Target, number: int, seed: int, log: _Log, deadline: float | None, *, shrinks: bool
    ) -> None:
        self.summary = Summary(number, lambda problem: command_of(problem, target))
        self._target, self._seed, self._log, self._deadline = target, seed, log, deadline
        self._shrinks = shrinks
        self._lock = threading.Lock()
        self._known: set[tuple[Any, ...]] = set()
        self._last_status = time.monotonic()
        self._header_written = False

    def done(self, problem: FuzzProblem, reply: Reply, worker: Worker) -> None:
        """Count it and log it; of a failure print what repeats it, made small where it is the first of its kind."""
        with self._lock:
            if not self._header_written:
                self._header_written = True
                self._log.write({"powerbench": __version__, "seed": self._seed, **worker.hello})
            self._log.write({"seed": self._seed, **reply})
            self.summary.add(problem, reply)
            if reply["status"] == "right":
                self._say_how_far()
                return
            first = self._first_of_its_kind(problem, reply)
            click.echo(f"{reply['status']}: {reply['message']}\n  {command_of(problem, self._target)}")
        hangs = reply["status"] == "timeout" and worker.timeout_s > SECONDS / 4  # each try would take as long
        if first and self._shrinks and not hangs:
            small = shrink(problem, lambda other: self._fails_alike(reply, other, worker), self._deadline)
            with self._lock:
                self._log.write({"seed": self._seed, "shrunk": small.text(), "from": problem.text()})
                self.summary.shrunk(problem, small)
                click.echo(f"smaller, and {reply['status']} too:\n  {command_of(small, self._target)}")

    def _fails_alike(self, reply: Reply, other: FuzzProblem, worker: Worker) -> bool:
        """Whether another problem fails in the same way; not where the time was over before it was known."""
        left = None if self._deadline is None else self._deadline - time.monotonic()
        answer = worker.ask(other, within(left, worker))
        return alike(reply, answer) and (self._deadline is None or time.monotonic() < self._deadline)

    def _first_of_its_kind(self, problem: FuzzProblem, reply: Reply) -> bool:
        kind = reply["status"], tuple(sorted(_wrong(reply))), problem.p, problem.dtype, problem.decode
        new = kind not in self._known and len(self._known) < MOST_SHRUNK
        self._known.add(kind)
        return new

    def _say_how_far(self) -> None:
        now = time.monotonic()
        if now - self._last_status > STATUS_SECONDS:
            self._last_status = now
            click.echo(self.summary.line(), err=True)


def _wrong(reply: Reply) -> set[str]:
    """The tensors that are wrong."""
    return {told.partition(":")[0].removesuffix(".row") for told in reply["message"].split("; ")}


def alike(reply: Reply, other: Reply) -> bool:
    """Whether another problem fails in the same way."""
    same = reply["status"] == other["status"]
    return same and (reply["status"] != "wrong" or bool(_wrong(reply) & _wrong(other)))


def command_of(problem: FuzzProblem, target: Target) -> str:
    """The command that checks exactly this problem."""
    backend = "" if target.backend == "auto" else f" --backend {target.backend}"
    return f"powerbench verify --device {target.device}{backend} --problem {shlex.quote(problem.text())}"
