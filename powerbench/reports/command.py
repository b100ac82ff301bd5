"""The command that measures one case of a run again, alone."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from powerbench.printable import command_line
from powerbench.reports.rows import Row
from powerbench.results.model import Header

_TIMERS = ("graph", "events")  # what `--timer` takes on a GPU; a CPU has only `wall`


def command(row: Row, header: Header, *, phases: bool = False) -> str:
    """`powerbench sweep` with every selector named, so that defaults that change do not change the case."""
    words = ["powerbench", "sweep", "--kernels", row.kernel]
    for option, value in (("--p", row.p), ("--d-tile", row.d_tile), ("--chunk", row.chunk_size)):
        words += [option, str(value)] if value is not None else []
    for option, size in (
        *(("--ctx", row.ctx), ("--batch", row.batch), ("--head-dim", row.head_dim), ("--value-dim", row.value_dim)),
        *(("--heads", row.heads), ("--kv-heads", row.kv_heads)),
    ):
        words += [option, str(size)]
    words += ["--dtype", row.dtype, "--pass", row.pass_, "--gated" if row.gated else "--ungated"]
    words += ["--device", header.environment.device_type, "--seed", str(header.seed)]
    mode, _, l2 = (row.timer or "").partition("-")
    if mode in _TIMERS and l2 in ("cold", "hot"):
        # where a graph was tried in vain, the sweep is left to find that out again
        words += ["--l2", l2] if row.timer_reason else ["--timer", mode, "--l2", l2]
    return command_line([*words, "--phases"] if phases else words)


class Stated(NamedTuple):
    """The command that a run file says it was made by: the file's words, whatever made it.

    `text` has each of its words quoted, so that a shell finds no second command in it. `sweeps`: it is a sweep of
    powerbench, and may be offered to be copied.
    """

    text: str
    sweeps: bool


def stated(header: Header) -> Stated:
    """The command of a run's header, fit to be shown."""
    try:
        words = shlex.split(header.command)
    except ValueError:  # a quotation mark without another
        words = [header.command]
    return Stated(command_line(words), words[:2] == ["powerbench", "sweep"])
