"""Does the gate cry wolf on this machine, and does it see what is planted?

    python -m tools.gate_trials --runs 20                 this code against itself
    python -m tools.gate_trials --runs 10 --planted 1.1   against itself with power attention 10 % slower

Each trial is a whole `powerbench check --against` session, in the same processes and by the same statistics. The slower
copy waits, after each forward call, for the planted share of the time the call took: on a CPU the host does, on a GPU
the device, so that it is in a CUDA graph too. So it is planted in forward passes, and the default suite has no other.
On a CPU, OMP_NUM_THREADS=1 before the command: docs/gate.md says why.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from powerbench.check.measure import Measuring
from powerbench.check.model import Policy
from powerbench.check.trees import Tree, this_tree

FORWARD = Path(__file__).with_name("forward.toml")
PLANT = '''

def _slower(kernel, factor):
    """The kernel, with forward calls that take `factor` times as long."""
    import dataclasses
    import time

    import torch

    def prepare(case):
        forward = kernel.prepare(case)
        shortest = [float("inf")]  # ms of an eager call on a GPU

        def on_gpu(*tensors):
            if torch.cuda.is_current_stream_capturing():
                y = forward(*tensors)
            else:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                y = forward(*tensors)
                end.record()
                end.synchronize()
                shortest[0] = min(shortest[0], start.elapsed_time(end))
            khz = torch.cuda.get_device_properties(0).clock_rate
            torch.cuda._sleep(int((factor - 1) * shortest[0] * khz))
            return y

        def on_cpu(*tensors):
            start = time.perf_counter()
            y = forward(*tensors)
            end = start + factor * (time.perf_counter() - start)
            while time.perf_counter() < end:
                pass
            return y

        return lambda q, *rest: (on_gpu if q.is_cuda else on_cpu)(q, *rest)

    return dataclasses.replace(kernel, prepare=prepare)


KERNELS = tuple(_slower(kernel, {factor}) if kernel.family == "power" else kernel for kernel in KERNELS)
'''


def main() -> None:
    """Run the trials and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="trials [20]")
    parser.add_argument("--planted", type=float, metavar="FACTOR", help="how much slower power attention is made")
    parser.add_argument("--suite", default=str(FORWARD), help="preset or TOML file [forward.toml beside this file]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--kernels", help="families or rows")
    parser.add_argument("--rounds", type=int, default=4, help="A B B A at most so often [4]")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the run files stay, a folder for each trial")
    arguments = parser.parse_args()
    statuses: Counter[int] = Counter()
    planted: Counter[str] = Counter()
    for trial in range(arguments.runs):
        kept = arguments.keep / f"trial-{trial + 1}" if arguments.keep else None
        measuring = Measuring(arguments.suite, arguments.device, arguments.kernels, kept, print)
        with TemporaryDirectory(prefix="powerbench-trial-") as folder:
            old, new = (this_tree(Path(folder) / name) for name in ("baseline", "new"))
            if arguments.planted:
                plant(new, arguments.planted)
            comparison, _ = measuring.session(old, new, Policy(), arguments.rounds)
        statuses[comparison.exit_status] += 1
        power = [case.verdict for case in comparison.cases if case.case_id.startswith("power-")]
        planted.update(power)
        print(f"trial {trial + 1}: status {comparison.exit_status}, {comparison.summary}; power: {', '.join(power)}")
        for case in comparison.cases:
            if case.verdict != "ok":
                print(f"  {case.case_id}: {case.verdict}, {case.ratio} ({case.low} to {case.high}) {case.reason}")
        for note in comparison.notes:
            print(f"  {note}")
    print(f"exit statuses of {arguments.runs} trials: {dict(sorted(statuses.items()))}")
    print(f"verdicts of the cases of power attention: {dict(planted)}")


def plant(tree: Tree, factor: float) -> None:
    """Make the tree's power attention slower by this factor."""
    with (tree.folder / "powerbench" / "kernels" / "table.py").open("a") as table:
        table.write(PLANT.replace("{factor}", repr(factor)))


if __name__ == "__main__":
    main()
