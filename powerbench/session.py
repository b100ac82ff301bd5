"""What the measuring commands share: suite, device and plan made from the selectors, then sweep, verify or dry run."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from powerbench import refine as refining
from powerbench.ceilings import THOROUGH, matmul_dtypes, measure_all_ceilings, measure_ceilings
from powerbench.device import Device, pick
from powerbench.errors import DeviceLostError, UserError
from powerbench.kernels.kernel import Kernel
from powerbench.kernels.table import available, select
from powerbench.plan import PlannedCase, plan
from powerbench.printable import printable
from powerbench.problem import DTYPES
from powerbench.reports.ceilings import LEGEND, CeilingRow, ceiling_rows
from powerbench.reports.rows import rows
from powerbench.results.environment import collect
from powerbench.results.model import SCHEMA_VERSION, Header, Measurement, Run
from powerbench.results.store import RunWriter, holds_nothing, load, make_room, start_over
from powerbench.results.visits import visited
from powerbench.roofline import Ceilings
from powerbench.runner import run
from powerbench.spoilers import spoilers
from powerbench.stopping import VISITS
from powerbench.suites import Suite
from powerbench.suites.grammar import words
from powerbench.terminal import Watcher, duration, outcome, print_plan, refining_text
from powerbench.timing import L2, Method, Mode
from powerbench.timing import method as choose_method
from powerbench.turns import Turns
from powerbench.worker import Setup, Worker


@dataclass(frozen=True)
class Session:
    """A suite resolved for a device. `console` is where progress goes (standard error).

    `phases`: a sweep also times, one by one, the launches of those kernels that can be taken apart. `timeout_s` is for
    one visit of a case; None: by its prediction. `refine`: a sweep then measures more contexts around its crossings.
    `visits`: in how many rounds over all its cases a sweep takes its samples. `turns`: those taken with another sweep.
    """

    suite: Suite
    kernels: list[Kernel]
    device: Device
    seed: int
    console: Console
    phases: bool = False
    method: Method = field(default_factory=Method)
    timeout_s: float | None = None
    refine: bool = False
    visits: int = VISITS
    turns: Turns | None = None

    @classmethod
    def prepare(
        cls, suite: Suite, device_name: str, seed: int, console: Console, *, phases: bool = False,
        timer: Mode | None = None, l2: L2 | None = None, timeout_s: float | None = None, refine: bool = False,
        visits: int = VISITS, turns: Turns | None = None,
    ) -> Session:  # fmt: skip
        """For a device. Raises UserError for what is bad there, before anything is measured."""
        device = pick(device_name)
        method = choose_method(device.type, timer, l2)
        suite = suite.on(device.type)
        list(suite.problems())  # raises where the selectors contradict each other
        kernels = select(suite.kernels or (), suite.kernels_from)
        if refine:
            refining.check(suite)
        if phases:
            _check_phases(kernels)
        return cls(suite, kernels, device, seed, console, phases, method, timeout_s, refine, visits, turns)

    def default_output(self) -> Path:
        """results/<utc time>-<device>-<suite>.jsonl"""
        return Path("results") / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{self.device.slug}-{self.suite.name}.jsonl"

    def ceilings(self) -> Ceilings:
        """What the roofline uses, measured now for the dtypes of the suite."""
        self.console.print(f"measuring the ceilings of {self.device.name} ...", markup=False)
        measured = measure_ceilings(self.device, self.suite.dtype or ())
        self.device.release()  # to the measuring process
        return measured

    def _run(
        self, planned: list[PlannedCase], watcher: Watcher, *, timed: bool = True
    ) -> closing[Generator[Measurement, None, None]]:
        """The measurements, from a process of their own that ends with the context."""
        hire = partial(Worker, Setup(self.device, self.seed, self.method))
        return closing(
            run(planned, self.device, hire, watcher, timed=timed, timeout_s=self.timeout_s, turns=self.turns)
        )

    def _all_ceilings(self) -> Ceilings:
        """For the header: everything there is to know of the machine, and the dtypes of the suite."""
        self.console.print(f"measuring the ceilings of {self.device.name} ...", markup=False)
        measured = measure_all_ceilings(self.device, (*matmul_dtypes(self.device), *(self.suite.dtype or ())))
        self.device.release()  # to the measuring process
        return measured

    def dry_run(self, out: Console) -> None:
        """Print the plan."""
        planned = self._plan(self.ceilings())
        print_plan(planned, out)
        if self.refine:
            out.print(refining_text(planned), markup=False, highlight=False, soft_wrap=True)

    def sweep(self, path: Path, command: str, *, resume: bool) -> Run:
        """Measure every case that the run file does not hold yet; each is on disk the moment it is taken."""
        warnings = spoilers(self.device)  # before anything has been done here that would look like another's
        writer, earlier = self._open(path, command, resume, warnings)
        with writer:
            ceilings = earlier.ceilings
            if not set(self.suite.dtype or ()) <= set(ceilings.matmul_flops_per_s):  # resumed with one more dtype
                again = self.ceilings()
                writer.append_ceilings(again)
                ceilings = ceilings.or_better(again)
            planned = self._plan(ceilings, earlier)
            total = duration(sum(item.total_seconds for item in planned))
            visits = f" in {self.visits} visits" if self.visits > 1 else ""
            message = f"{len(planned)} cases{visits}, about {total}, into {path}"
            self.console.print(message, markup=False, soft_wrap=True)
            if self.refine:
                everything = self._plan(ceilings)
                self.console.print(refining_text(everything), markup=False, soft_wrap=True)
            self._note_cases_timed_otherwise(earlier)
            if self.phases:
                self._note_cases_without_phases(earlier)
            measured = self._measure(planned, writer)
            if self.refine:
                measured += self._refine(writer, ceilings)
            if measured:
                writer.append_ceilings(self.ceilings(), warnings if resume else ())
        return load(path)

    def _plan(
        self, ceilings: Ceilings, earlier: Run | None = None, step: refining.Step | None = None
    ) -> list[PlannedCase]:
        """The cases of the suite, or of a step of --refine, less the visits that a run has behind it."""
        suite, kernels = (step.suite, self._named(step)) if step else (self.suite, self.kernels)
        done = {one.case_id: self._visited(one) for one in earlier.measurements} if earlier else {}
        return plan(suite, kernels, self.device, ceilings, done, phases=self.phases, visits=self.visits)

    def _visited(self, measurement: Measurement) -> Collection[int]:
        """A case that failed is done with, and so is one that was timed by other means: the two are not to be mixed."""
        goes_on = measurement.status == "ok" and self.method.gives(measurement.timer, self.device.type)
        return visited(measurement) if goes_on else range(self.visits)

    def _measure(self, planned: list[PlannedCase], writer: RunWriter) -> int:
        """Run the cases into the file; how many visits there were."""
        measured = 0
        try:
            with Watcher(planned, self.console) as watcher, self._run(planned, watcher) as measurements:
                for measurement in measurements:
                    writer.append(measurement)
                    measured += 1
        except (KeyboardInterrupt, DeviceLostError):
            done = {one.case_id: self._visited(one) for one in load(writer.path).measurements}  # also the last append
            kept = sum(set(item.visits) <= set(done.get(item.case.case_id, ())) for item in planned)
            self.console.print(
                f"interrupted: {kept} of {len(planned)} cases are complete in {writer.path}, what was measured of the "
                f"others too; --resume goes on with -o {writer.path}",
                markup=False, soft_wrap=True,
            )  # fmt: skip
            raise
        return measured

    def _refine(self, writer: RunWriter, ceilings: Ceilings) -> int:
        """Rounds of a few more contexts around each crossing, each round planned by all that the file then holds."""
        names = [kernel.name for kernel in self.kernels]
        found = rows(load(writer.path))
        steps = refining.begun(found, self.suite, names)
        measured = 0
        for _ in range(refining.LIMIT + 1):  # what was begun, then at least one context a round in every setting left
            planned = []
            for step in steps:
                cases = self._plan(ceilings, load(writer.path), step)
                planned += cases
                if cases:
                    total = duration(sum(item.total_seconds for item in cases))
                    message = f"--refine: {step.text}: {len(cases)} cases, about {total}"
                    self.console.print(message, markup=False, soft_wrap=True)
            if planned:
                measured += self._measure(planned, writer)
            found = rows(load(writer.path))
            steps = refining.next_steps(found, self.suite, names)
        self.console.print(refining.summary(found, self.suite, names), markup=False, soft_wrap=True)
        return measured

    def _named(self, step: refining.Step) -> list[Kernel]:
        return [kernel for kernel in self.kernels if kernel.name in (step.suite.kernels or ())]

    def _note_cases_timed_otherwise(self, earlier: Run) -> None:
        timers = [m.timer for m in earlier.measurements if m.status == "ok" and len(self._visited(m)) > len(visited(m))]
        if timers:
            how = ", ".join(dict.fromkeys(map(str, timers)))
            message = f"--resume: cases timed by other means ({how}), which stay as they are: {len(timers)}"
            self.console.print(message, markup=False, soft_wrap=True)

    def _note_cases_without_phases(self, earlier: Run) -> None:
        """A case is done however it was measured; that those of an earlier sweep lack their phases has to be said."""
        kernels = [kernel for kernel in self.kernels if kernel.phases]
        asked = {case.case_id for case in self.suite.cases(kernels, self.device.type)}
        whole = [m for m in earlier.measurements if m.status == "ok" and m.case_id in asked and not m.phases]
        if whole:
            message = f"--phases: cases measured earlier without, which stay as they are: {len(whole)}"
            self.console.print(message, markup=False, soft_wrap=True)

    def _open(self, path: Path, command: str, resume: bool, warnings: tuple[str, ...]) -> tuple[RunWriter, Run]:
        if resume and path.is_file() and holds_nothing(path):
            start_over(path)
        if resume and path.exists():
            writer, earlier = RunWriter.resume(path)
            self._warn((*earlier.warnings, *warnings))
            was = earlier.header
            if (was.environment.device, was.seed) != (self.device.name, self.seed):
                raise UserError(
                    f"--resume: {path} was measured on {was.environment.device} with seed {was.seed}; "
                    f"this is {self.device.name} with seed {self.seed}"
                )
            return writer, earlier
        if path.exists():
            raise UserError(f"{path} exists; go on with it by --resume, or name another file by -o")
        make_room(path)  # before the ceilings take their time
        self._warn(warnings)
        header = Header(
            schema=SCHEMA_VERSION,
            command=command,
            suite=self.suite.name,
            seed=self.seed,
            started=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            environment=collect(self.device, {kernel.name: kernel.version() for kernel in self.kernels}, warnings),
            ceilings=self._all_ceilings(),
        )
        return RunWriter.create(path, header), Run(str(path), header, ())

    def _warn(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            self.console.print(f"warning: {warning}", markup=False, soft_wrap=True)

    def verify(self, out: Console) -> list[Measurement]:
        """Gate every case, print a row each, and return them."""
        planned = plan(self.suite, self.kernels, self.device, self.ceilings())
        table = Table(box=None, pad_edge=False)
        for column in ("case", "result"):
            table.add_column(column, overflow="fold")
        with Watcher(planned, self.console) as watcher, self._run(planned, watcher, timed=False) as gated:
            measurements = list(gated)
        for measurement in measurements:
            allowed = f" ({measurement.tolerance:.0e} allowed)" if measurement.status == "ok" else ""
            table.add_row(*(Text(printable(text)) for text in (measurement.case_id, outcome(measurement) + allowed)))
        out.print(table)
        return measurements


def _check_phases(kernels: list[Kernel]) -> None:
    """Raise UserError where --phases would be an option without effect."""
    if any(kernel.phases for kernel in kernels):
        return
    can = ", ".join(kernel.name for kernel in available().values() if kernel.phases) or "no kernel"
    names = ", ".join(kernel.name for kernel in kernels)
    raise UserError(f"--phases: no selected kernel ({names}) can be taken apart; of all, {can} can")


def print_ceilings(dtypes: str | None, device_name: str, out: Console) -> None:
    """Measure the ceilings of a device thoroughly and print them; `dtypes` None: all that are ceilings of it."""
    chosen = words(dtypes, "--dtype", (*DTYPES, "tf32")) if dtypes else None
    device = pick(device_name)
    measured = measure_all_ceilings(device, chosen or matmul_dtypes(device), THOROUGH)
    out.print(device.name, markup=False)
    out.print(ceilings_table(ceiling_rows(measured, device.name)))
    out.print(LEGEND, markup=False, soft_wrap=True)


def ceilings_table(rows: Sequence[CeilingRow]) -> Table:
    """What is stored, line by line; without the datasheet's column where no row has a figure of it."""
    table = Table(box=None, pad_edge=False)
    columns = [("ceiling", "name"), ("best", "best"), ("median", "median"), ("spread", "spread"), ("n", "samples")]
    columns += [("datasheet", "datasheet")] if any(row.datasheet for row in rows) else []
    for heading, _ in columns:
        table.add_column(heading, justify="left" if heading == "ceiling" else "right", no_wrap=True)
    table.add_column("measured on", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(getattr(row, field))) for _, field in columns), Text(printable(row.of)))
    return table
