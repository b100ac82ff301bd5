"""What a run file holds: one header, then one measurement a line. Raw samples only; statistics are computed on reading.

Schema history
    1   first version; since then, of a measurement, `phases`, `timer_reason`, `stop`, `order`, `wall_ms`, `rounds`,
        `retaken` and `sequence_bytes`, of the ceilings `measured`, of the environment `cuda`, `gpu` and `warnings`, of
        the ceilings measured again `warnings`, and of a round `visit`: all optional, and ignored by earlier readers,
        who take the last visit of a case for its only one. Timers were `events-cold` and `perf_counter`, which is now
        `wall`. Earlier readers do not know the pass `decode`
"""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

import msgspec

from powerbench.bounds import Command, Count, Difference, Name, Number
from powerbench.cost import Cost, Launch, total
from powerbench.nvml import Facts
from powerbench.problem import Case
from powerbench.roofline import Ceilings

SCHEMA_VERSION = 1

INTERLEAVED = "interleaved"  # `Measurement.order` of contestants that took turns; else it is `in turn` and why

# Clocks event reasons under which a time is not the GPU's own: too hot, or short of current. `sw power cap` is none of
# them: a GPU whose tensor cores are busy meets its power limit, and that is the clock its users get.
SLOWDOWNS = ("hw slowdown", "hw thermal slowdown", "hw power brake", "sw thermal slowdown")

Status = Literal["ok", "unsupported", "wrong", "oom", "timeout", "failed"]


class Environment(msgspec.Struct, frozen=True):
    """The machine and the software that measured."""

    device: str  # as the vendor names it, for example NVIDIA H200
    device_type: str  # cpu or cuda
    cores: Count  # CPU threads used by torch, or the GPU's multiprocessors
    memory_bytes: Number
    os: str
    python: str
    cpu: str
    driver: str | None  # the version line of the NVIDIA kernel module, else what NVML says
    packages: dict[str, str]  # versions: torch, triton and each contestant's package
    commit: str | None  # of powerbench, with -dirty where the tree was
    powerbench: str
    cuda: str | None = None  # what torch was built with; None on a CPU
    gpu: Facts | None = None  # UUID, driver, clocks policy, ECC, MIG; None on a CPU
    warnings: tuple[str, ...] = ()  # what may spoil the times, as the machine stood before the run


class Header(msgspec.Struct, frozen=True, tag="header", tag_field="type"):
    """The first line of a run file."""

    schema: Count
    command: Command
    suite: Name
    seed: Number
    started: str  # UTC, ISO 8601
    environment: Environment
    ceilings: Ceilings


class Phase(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One launch of an operator timed alone: milliseconds of single calls, by events on a GPU, wall time on a CPU.

    Without samples, `message` says why. `name` is that of its launch, whose cost is its work.
    """

    name: Name
    samples_ms: tuple[float, ...] = ()
    message: str | None = None


class Round(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The state of the GPU over `samples` consecutive samples (`powerbench.telemetry`). None: unavailable.

    sm_mhz and power_w are means of the readings around them, temperature_c the highest; `reasons` are what held the
    clock down, by NVML's names, empty where nothing did. `visit`: in which of its visits, from 0, the case was then.
    """

    samples: Count
    sm_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    reasons: tuple[str, ...] | None = None
    visit: Count = 0

    @property
    def slowdowns(self) -> tuple[str, ...]:
        """Those of the reasons that spoil a time: not what the GPU does in good health under this load."""
        return tuple(reason for reason in self.reasons or () if reason in SLOWDOWNS)


class Measurement(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag="measurement", tag_field="type"
):
    """One case and what came of it. Samples exist only where `status` is ok.

    A case is measured in several visits, spread over the sweep. A line of the file is one visit; read back, a case is
    one measurement with the samples of all (`powerbench.results.visits`).

    samples_ms are wall or device milliseconds of single calls, in the order taken, as `timer` says: a mode of
    `powerbench.timing` and the state of the L2 (graph-cold, events-hot ...), or `wall` on a CPU; `timer_reason` says
    why it is not a graph, where one was tried. `stop` is why sampling stopped (a `powerbench.stopping.StopReason`; of
    several visits also `visits`, where all were made and still differ), `order` whether the contestants of the problem
    took turns. `wall_ms` are a few wall times of the same call, beside device times. `rounds` are the turns in which
    the samples were taken, in their order and together as many, and the state that a GPU was in. `retaken` are rounds
    whose samples were dropped and taken again, for their slowdowns.
    `error` is the largest relative error against the float64 reference over the sampled rows,
    `tolerance` what was allowed.
    `sequence_bytes` is what a decoding contestant keeps of one sequence, by its ledger: a cache or a state.
    `message` says why where the status is not ok. `phases`, where they were asked for and the kernel can be taken
    apart, are launches timed one by one after the whole call, in the order of `launches`.
    """

    case: Case
    status: Status
    samples_ms: tuple[float, ...] = ()
    timer: str | None = None
    launches: tuple[Launch, ...] = ()
    error: float | None = None
    tolerance: float | None = None
    peak_memory_bytes: Difference | None = None
    config: dict[str, str] = {}
    message: str | None = None
    phases: tuple[Phase, ...] = ()
    timer_reason: str | None = None
    stop: str | None = None
    order: str | None = None
    wall_ms: tuple[float, ...] = ()
    rounds: tuple[Round, ...] = ()
    retaken: tuple[Round, ...] = ()
    sequence_bytes: Number | None = None

    @property
    def throttled(self) -> tuple[str, ...]:
        """The slowdowns that some of the samples were taken under; empty: none, or none that could be read."""
        return tuple(dict.fromkeys(reason for one in self.rounds for reason in one.slowdowns))

    @property
    def visits(self) -> tuple[tuple[float, ...], ...]:
        """The samples in ms of each visit, in the order taken; a single one where no rounds were recorded."""
        found: dict[int, list[float]] = {}
        for one, samples in zip(self.rounds, self.by_round, strict=False):
            found.setdefault(one.visit, []).extend(samples)
        if not found:
            return self.by_round
        return tuple(tuple(samples) for samples in found.values())

    @property
    def by_round(self) -> tuple[tuple[float, ...], ...]:
        """The samples in ms of each round, in the order taken; in a single one where no rounds were recorded."""
        if not self.rounds:
            return (self.samples_ms,) if self.samples_ms else ()
        ends = list(accumulate(one.samples for one in self.rounds))
        return tuple(self.samples_ms[end - one.samples : end] for end, one in zip(ends, self.rounds, strict=True))

    @property
    def case_id(self) -> str:
        """The key of resume and of comparison."""
        return self.case.case_id

    @property
    def cost(self) -> Cost:
        """The operator's work: the sum over its launches."""
        return total(self.launches)


class CeilingsAgain(msgspec.Struct, frozen=True, omit_defaults=True, tag="ceilings", tag_field="type"):
    """A line after the measurements: the ceilings once more, in case the machine was busy when the sweep began.

    `warnings`: of a sweep that went on with this file, as those of the environment.
    """

    ceilings: Ceilings
    warnings: tuple[str, ...] = ()


class Run(msgspec.Struct, frozen=True):
    """A whole run file, read back. `warnings`: what was wrong with the file but did not keep it from being read."""

    path: str
    header: Header
    measurements: tuple[Measurement, ...]
    warnings: tuple[str, ...] = ()
    again: tuple[CeilingsAgain, ...] = ()

    @property
    def spoilers(self) -> tuple[str, ...]:
        """What may have spoilt the times, as the machine stood before the run and before each that went on with it."""
        later = (warning for line in self.again for warning in line.warnings)
        return tuple(dict.fromkeys((*self.header.environment.warnings, *later)))

    @property
    def ceilings(self) -> Ceilings:
        """The best that the machine showed before, between and after the measurements."""
        best = self.header.ceilings
        for line in self.again:
            best = best.or_better(line.ceilings)
        return best
