"""Measure published runs anew, a queue for each GPU of a machine, until a deadline; the same call again goes on.

    python -m tools.measure FOLDER NAME... [--seconds 570] [--visits 3] [--warm]

NAME is a run under results/h200 (decode, degree ...), whose command is taken from its header, or `NAME=OPTIONS` with
the options of `powerbench sweep`. Run files, logs and the state of the queue are in FOLDER. A run goes to the first GPU
that is idle, in the order given, and stays on it. `--warm` first compiles what suites will launch, by many processes:
within a sweep it is one after the other. Exit status: 0 all have ended (each log says how), 1 some are left.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from powerbench import outputs
from powerbench.results.store import load
from tools.publish.runs import command

ROOT = Path(__file__).parents[1]
ENDING_SECONDS = 12.0  # for sweeps to end when they are interrupted
WARMING = 12  # processes a GPU
INTERRUPTED = 130
SWEEP = (sys.executable, "-m", "powerbench", "sweep")


class Progress(msgspec.Struct):
    """What is known of a run between calls. `gpu`: that it was begun on."""

    gpu: int
    seconds: float = 0.0
    done: bool = False


@dataclass
class Live:
    """A sweep that runs."""

    name: str
    process: subprocess.Popen[bytes]
    began: float


def options(name: str, visits: int | None) -> list[str]:
    """The options of the sweep, without its output: those given, or those of the published run's command."""
    given = name.partition("=")[2]
    words = shlex.split(given or command(load(ROOT / f"results/h200/{name}.jsonl")))
    words = words if given else words[2:]  # powerbench sweep
    if visits is None:
        return words
    if "--visits" in words:
        at = words.index("--visits")
        del words[at : at + 2]
    return [*words, "--visits", str(visits)]


class Queue:
    """The runs, each with its options, and what of them is done; that is a file, so that the next call knows."""

    def __init__(self, folder: Path, runs: dict[str, list[str]], gpus: int, sweep: Sequence[str] = SWEEP) -> None:
        self.folder, self.runs, self.gpus, self.sweep = folder, runs, gpus, sweep
        self.state_file = folder / "queue.json"
        self.progress: dict[str, Progress] = {}
        if self.state_file.exists():
            self.progress = msgspec.json.decode(self.state_file.read_bytes(), type=dict[str, Progress])
        self.live: dict[int, Live] = {}

    @property
    def left(self) -> list[str]:
        """Those that are not done."""
        return [name for name in self.runs if not (name in self.progress and self.progress[name].done)]

    def work(self, deadline: float) -> None:
        """Until all are done, or the deadline, when what runs is interrupted: measured points are on disk."""
        while time.time() < deadline and (self.left or self.live):
            for gpu in range(self.gpus):
                if gpu in self.live and self.live[gpu].process.poll() is not None:
                    self._end(gpu)
                if gpu not in self.live:
                    self._start(gpu)
            if not self.live:
                return
            time.sleep(0.2)
        for one in self.live.values():
            one.process.send_signal(signal.SIGINT)
        for gpu in list(self.live):
            self._end(gpu)

    def _start(self, gpu: int) -> None:
        running = {one.name for one in self.live.values()}
        for name in self.left:
            begun = self.progress.get(name)
            if name not in running and (begun is None or begun.gpu == gpu):
                break
        else:
            return
        self.progress.setdefault(name, Progress(gpu))
        output = self.folder / f"{name}.jsonl"
        words = [*self.sweep, *self.runs[name], "-o", output.name, *(["--resume"] if output.exists() else [])]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(words, cwd=self.folder, env=environment(gpu), stdout=log, stderr=log)
        self.live[gpu] = Live(name, process, time.time())
        say(f"GPU {gpu}: {name}")

    def _end(self, gpu: int) -> None:
        one = self.live.pop(gpu)
        try:
            status = one.process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            one.process.kill()
            status = one.process.wait()
        progress = self.progress[one.name]
        progress.seconds += time.time() - one.began
        progress.done = status >= 0 and status != INTERRUPTED  # also where it cannot be had: its log says why
        outputs.write(self.state_file, msgspec.json.encode(self.progress))
        say(f"GPU {gpu}: {one.name} ended with status {status} after {progress.seconds:.0f} s in all")


def warm(folder: Path, runs: dict[str, list[str]], gpus: int, deadline: float) -> None:
    """Compile by `tools.warm` what the runs that are suites will launch; once."""
    done = folder / "warm"
    suites = [words[words.index("--suite") + 1] for words in runs.values() if "--suite" in words]
    if done.exists() or not suites:
        return
    number = WARMING * gpus
    processes = []
    for i in range(number):
        words = [sys.executable, "-m", "tools.warm", str(i), str(number), *suites]
        with (folder / f"warm-{i}.log").open("wb") as log:
            processes.append(subprocess.Popen(words, cwd=ROOT, env=environment(i % gpus), stdout=log, stderr=log))
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.time()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    done.touch()
    say("compiled")


def environment(gpu: int) -> dict[str, str]:
    """Of a process that sees one GPU, and this code."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu), "PYTHONPATH": path}


def say(text: str) -> None:
    """A line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="then end what runs; the next call goes on")
    parser.add_argument("--visits", type=int, help="instead of the published command's")
    parser.add_argument("--warm", action="store_true", help="compile first, by many processes")
    asked = parser.parse_args()
    deadline = time.time() + asked.seconds - ENDING_SECONDS
    asked.folder.mkdir(parents=True, exist_ok=True)
    runs = {name.partition("=")[0]: options(name, asked.visits) for name in asked.names}
    gpus = max(1, torch.cuda.device_count())
    if asked.warm:
        warm(asked.folder, runs, gpus, deadline)
    queue = Queue(asked.folder, runs, gpus)
    queue.work(deadline)
    say(f"left: {', '.join(queue.left) or 'nothing'}")
    return 1 if queue.left else 0


if __name__ == "__main__":
    sys.exit(main())
