"""What a run of random problems found, as it is told at its end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import click

from powerbench.fuzz.problem import FuzzProblem


class Summary:
    """Counts replies; `number` problems were asked for, and `command` makes what repeats one."""

    def __init__(self, number: int, command: Callable[[FuzzProblem], str]) -> None:
        self._number, self._command = number, command
        self._start = time.monotonic()
        self._statuses: Counter[str] = Counter()
        self._backends: Counter[str] = Counter()
        self._compiled: set[tuple[Any, ...]] = set()
        self._wrong: Counter[str] = Counter()
        self._worst: dict[str, tuple[float, float, str, FuzzProblem]] = {}
        self._by: dict[str, Counter[str]] = {}
        self._failures: dict[FuzzProblem, FuzzProblem] = {}

    @property
    def right(self) -> bool:
        """Whether problems were checked, and all of them are right."""
        return self._statuses.keys() == {"right"}

    def add(self, problem: FuzzProblem, reply: dict[str, Any]) -> None:
        """One reply of a worker."""
        self._statuses[reply["status"]] += 1
        self._backends[reply.get("backend", "none")] += 1
        self._compiled.add(_class(problem))
        if reply["status"] != "right":
            self._failures[problem] = problem
        for name, found in reply.get("tensors", {}).items():
            error, allowed, by = found["error"], found["allowed"], found["by"]
            self._by.setdefault(name, Counter())[by] += 1
            if error is None or error > allowed:
                self._wrong[name] += 1
            share = float("inf") if error is None else error / allowed
            if share > self._worst.get(name, (-1.0,))[0]:
                self._worst[name] = (share, float("nan") if error is None else error, by, problem)

    def shrunk(self, problem: FuzzProblem, small: FuzzProblem) -> None:
        """A failure was made smaller."""
        self._failures[problem] = small

    def line(self) -> str:
        """How far it is."""
        done, seconds = sum(self._statuses.values()), time.monotonic() - self._start
        statuses = ", ".join(f"{n} {status}" for status, n in sorted(self._statuses.items()))
        return f"{done} of {self._number} problems in {seconds:.0f} s: {statuses or 'none'}"

    def print(self) -> None:
        """Everything."""
        backends = ", ".join(f"{name} {n}" for name, n in sorted(self._backends.items()))
        click.echo(f"\n{self.line()}\nbackend: {backends}; sets of constants for kernels: {len(self._compiled)}")
        if self._worst:
            click.echo(
                "\ntensor       wrong  largest error / allowed, and the error; what else than the tolerance allowed it"
            )
        for name in sorted(self._worst):
            share, error, by, _ = self._worst[name]
            others = ", ".join(f"{reason} {n}" for reason, n in sorted(self._by[name].items()) if reason != "tolerance")
            click.echo(
                f"{name:11} {self._wrong[name]:6}  {share:8.3g}  {error:8.2g} ({by}){'; ' + others if others else ''}"
            )
        smallest = list(dict.fromkeys(self._failures.values()))
        if smallest:
            click.echo("\nto repeat what is not right:")
            for problem in smallest:
                click.echo(f"  {self._command(problem)}")


def _class(problem: FuzzProblem) -> tuple[Any, ...]:
    return (problem.p, problem.d, problem.e, problem.d_tile, problem.dtype, problem.gated, problem.normalize,
            problem.initial, problem.final, problem.loss, problem.decode, problem.step, problem.low)  # fmt: skip
