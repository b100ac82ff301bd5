"""Is the ruler straight? Repeats of one sweep against each other, graph against events, both against the profiler.

    python -m tools.agreement REPEAT.jsonl REPEAT.jsonl ... --events EVENTS.jsonl [-o TABLE.md]

On the machine that measured: the last column takes each case once more, under torch.profiler, as the sum of the device
times of its kernels. That sum holds neither launches nor the gaps between kernels, so it may be a little shorter.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from powerbench import outputs
from powerbench.bench import make_inputs, timed_call
from powerbench.kernels.table import available
from powerbench.problem import Case
from powerbench.results.model import Measurement, Run
from powerbench.results.statistics import typical
from powerbench.results.store import load
from powerbench.timing import FLUSH_BYTES, spin_cycles

CALLS = 12  # under the profiler, after two to warm up
FLUSH_KERNEL = "bitwise_not"  # no contestant has one: how the flush is told from what is judged
REST_KERNEL = "spin_kernel"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repeats", nargs="+", metavar="REPEAT.jsonl")
    parser.add_argument("--events", metavar="EVENTS.jsonl", help="the same sweep with --timer events")
    parser.add_argument("-o", "--output", metavar="TABLE.md", help="also write the table there")
    arguments = parser.parse_args()
    read = [*arguments.repeats, *([arguments.events] if arguments.events else [])]
    outputs.check({"-o": arguments.output}, read)
    repeats = [load(path) for path in arguments.repeats]
    events = load(arguments.events) if arguments.events else None
    text = "\n".join(_table(repeats, events))
    if arguments.output:
        outputs.write(arguments.output, text + "\n", inputs=read)
    print(text)


def _table(repeats: list[Run], events: Run | None) -> list[str]:
    by_events = _medians(events) if events else {}
    medians = [_medians(run) for run in repeats]
    lines = [
        "| case | timer | ms | repeats differ by | events / graph | profiler / graph |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for measurement in repeats[0].measurements:
        case = measurement.case
        ms = [one[case.case_id] for one in medians if case.case_id in one]
        if len(ms) < len(repeats):
            lines.append(f"| {_name(case)} | {measurement.status}: {measurement.message} | | | | |")
            continue
        middle = statistics.median(ms)
        apart = f"{(max(ms) - min(ms)) / middle:.2%}"
        other = f"{by_events[case.case_id] / middle:.3f}" if case.case_id in by_events else ""
        judge = f"{_profiled_ms(case, repeats[0].header.seed) / middle:.3f}"
        lines.append(f"| {_name(case)} | {measurement.timer} | {middle:.4f} | {apart} | {other} | {judge} |")
    return lines


def _medians(run: Run) -> dict[str, float]:
    return {one.case_id: _median(one) for one in run.measurements if one.status == "ok"}


def _median(measurement: Measurement) -> float:
    return typical(measurement.visits)


def _name(case: Case) -> str:
    return f"{case.kernel}, {case.pass_}, d = {case.problem.head_dim}, T = {case.problem.seqlen}"


def _profiled_ms(case: Case, seed: int) -> float:
    """Median over calls of the summed device time of a call's kernels, on a cold L2."""
    device = torch.device("cuda")
    kernel = available()[case.kernel]
    inputs = make_inputs(case.problem, device, seed)
    call = timed_call(kernel, case, inputs, kernel.prepare(case))
    flushed = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    rest = spin_cycles(call, device)  # on a rested device, as powerbench does: else it runs into its power limit
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(CALLS):
            torch.cuda._sleep(rest)
            flushed.bitwise_not_()
            call()
        torch.cuda.synchronize()
    calls: list[float] = []
    kernels = (event for event in profiler.events() if event.device_type == DeviceType.CUDA)
    for event in sorted(kernels, key=lambda event: event.time_range.start):
        if FLUSH_KERNEL in event.name:
            calls.append(0.0)
        elif REST_KERNEL not in event.name:
            calls[-1] += event.time_range.elapsed_us() / 1e3
    assert len(calls) == CALLS
    return statistics.median(calls)


if __name__ == "__main__":
    main()
