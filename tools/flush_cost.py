"""What the flush of the L2 adds to a cold sample, by the way it flushes: `python -m tools.flush_cost`, on a GPU.

The timer writes a buffer before each sample. The L2 then holds lines that are yet to be written to memory, and a call
that reads has them written back in its own time. Here the same calls are timed after a flush by writing, by reading,
and by both, one after the other. docs/measuring.md has the outcome.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from powerbench.memory_read import memory_read
from powerbench.timing import FLUSH_BYTES, SPIN_CYCLES_PER_MS

SIZES_MIB = (1, 4, 16, 64, 128, 512)
SAMPLES = 101

Call = Callable[[], object]


def flushes() -> dict[str, Call]:
    """The ways, by name; each goes through several times the L2 at least."""
    written = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    read = memory_read(torch.rand(2 * FLUSH_BYTES // 4, device="cuda"))
    return {
        "write": written.zero_,
        "write, then read": lambda: (written.zero_(), read()),
        "read": read,
        "read, then write": lambda: (read(), written.zero_()),
    }


def calls() -> dict[str, Call]:
    """Reads, fills and copies of each size, by name."""
    found: dict[str, Call] = {}
    for mib in SIZES_MIB:
        source, target = torch.rand(mib << 18, device="cuda"), torch.empty(mib << 18, device="cuda")
        found[f"read {mib} MiB"] = memory_read(source)
        found[f"fill {mib} MiB"] = lambda target=target: target.fill_(1.0)  # type: ignore[misc]
        found[f"copy {mib} MiB"] = lambda source=source, target=target: target.copy_(source)  # type: ignore[misc]
    return found


def captured(call: Call) -> Call:
    """The call as a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


def sample_us(call: Call, flush: Call) -> float:
    """Microseconds of one call after a flush."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(SPIN_CYCLES_PER_MS)
    flush()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def main() -> None:
    """Print the medians, in us."""
    ways = flushes()
    print("us, medians  " + "".join(f"{name:>18}" for name in ways))
    for name, call in calls().items():
        replay = captured(call)
        taken = [[sample_us(replay, flush) for flush in ways.values()] for _ in range(SAMPLES)]  # in turns
        print(f"{name:13}" + "".join(f"{statistics.median(us):18.1f}" for us in zip(*taken, strict=True)), flush=True)


if __name__ == "__main__":
    main()
