"""The command that measures one case of a run again, alone."""

from __future__ import annotations

import shlex

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
    return shlex.join([*words, "--phases"] if phases else words)
