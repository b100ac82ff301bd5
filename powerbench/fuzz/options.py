"""The options of random problems, which `powerbench verify` has beside its own. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from powerbench.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])


def fuzzing(command: F) -> F:
    """Adds the options of random problems."""
    for option in (
        click.option("--log", metavar="FILE.jsonl", help="With --random: every problem and its errors, appended."),
        click.option("--max-seconds", type=click.FloatRange(min=1), metavar="S", help="With --random: end by then."),
        click.option("--backend", type=click.Choice(["auto", "torch", "triton"]), default="auto", show_default=True,
                     help="With --random or --problem; triton on a CPU is Triton's interpreter."),
        click.option("--workers", type=click.IntRange(min=1), metavar="N",
                     help="With --random: processes side by side [14 on a GPU, 4 on a CPU; less with few cores]."),
        click.option("--problem", "problems", multiple=True, metavar="TEXT",
                     help="Instead: this problem of power attention, as --random prints it. May be repeated."),
        click.option("--random", "number", type=click.IntRange(min=1), metavar="N",
                     help="Instead: N random problems of power attention, drawn by --seed; a failure is made smaller "
                          "and printed as the command that repeats it."),
    ):  # fmt: skip
        command = option(command)
    return command


@dataclass(frozen=True)
class Asked:
    """The options of `fuzzing`."""

    number: int | None
    problems: tuple[str, ...]
    workers: int | None
    backend: str
    max_seconds: float | None
    log: str | None

    @property
    def anything(self) -> bool:
        """Whether random problems are asked for, rather than the cases of a sweep."""
        return bool(self.number or self.problems)

    def refuse_alone(self) -> None:
        """UserError where an option has no meaning without --random or --problem."""
        given = {"--workers": self.workers, "--max-seconds": self.max_seconds, "--log": self.log,
                 "--backend": None if self.backend == "auto" else self.backend}  # fmt: skip
        for name, value in given.items():
            if value is not None:
                raise UserError(f"{name} goes with --random or --problem")
