"""The tests of a GPU, as one command: `python -m tools.gpu_tests [--workers N] [pytest arguments]`.

Most of their time is compiling. First those that judge no times run side by side in processes that share the GPU and
Triton's cache; then those marked `timing` run alone, one after the other, on a GPU that is quiet again. Exit status 1:
something failed in either.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

MOST_WORKERS = 12  # share the memory of the GPU
NOTHING_COLLECTED = 5  # exit status of pytest


def commands(workers: int, arguments: list[str]) -> list[list[str]]:
    """The two runs of pytest."""
    pytest = [sys.executable, "-m", "pytest"]
    return [
        [*pytest, "-m", "gpu and not timing", "-n", str(workers), "--dist", "loadgroup", *arguments],
        [*pytest, "-m", "gpu and timing", "-p", "no:xdist", *arguments],
    ]


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_tests", description=__doc__)
    cores = os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=max(1, min(MOST_WORKERS, cores - 2)), help="processes at once")
    asked, arguments = parser.parse_known_args(argv)
    # the tests' own threads would wait for each other
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start, statuses = time.perf_counter(), []
    for command in commands(asked.workers, arguments):
        print(f"$ {' '.join(command)}", flush=True)
        statuses.append(subprocess.run(command, env=environment, check=False).returncode)
    print(f"{time.perf_counter() - start:.0f} s")
    return 1 if set(statuses) - {0, NOTHING_COLLECTED} or set(statuses) == {NOTHING_COLLECTED} else 0


if __name__ == "__main__":
    sys.exit(main())
