"""The command line: parse, one library call, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from powerbench._version import __version__
from powerbench.check.command import check
from powerbench.errors import INTERNAL, DeviceLostError, UserError, internal
from powerbench.printable import command_line, printable
from powerbench.turns import Turns

if TYPE_CHECKING:
    from powerbench.console import Console
    from powerbench.suites import Suite
    from powerbench.timing import L2, Mode

F = TypeVar("F", bound=Callable[..., Any])

# (option, metavar, help): the selectors of sweep and verify; `powerbench.suites.suite` parses and checks them.
SELECTORS = (
    ("--p", "LIST", "Degrees of power attention: 2, 1,2 ..."),
    ("--ctx", "LIST", "Context lengths: 64k, 1k..64k (doubling), 1k..64k:8 (eight points)."),
    ("--chunk", "LIST", "Chunk sizes, or auto."),
    ("--d-tile", "LIST", "Tile sizes of the feature map, or auto."),
    ("--head-dim", "LIST", "Head dimensions of q and k [64]."),
    ("--value-dim", "LIST", "Head dimensions of v [as q and k]."),
    ("--heads", "LIST", "Query heads [8 on a GPU, 1 on a CPU]."),
    ("--kv-heads", "LIST", "Key/value heads [as --heads]."),
    ("--batch", "LIST", "Batch sizes, the same at every context."),
    ("--tokens", "N", "Tokens (batch x context), the same at every context [the largest context]."),
    ("--dtype", "LIST", "bf16, fp16, fp32, fp64 [bf16 on a GPU, fp32 on a CPU]."),
    ("--pass", "LIST", "fwd, bwd, fwd+bwd, decode [fwd]."),
    ("--kernels", "LIST", "Families or rows as `powerbench list kernels` prints them [what suits the device]."),
)

# (option, help): keys of a model's shape; `powerbench.models` checks them.
SHAPE = (
    ("--layers", "Layers."),
    ("--d-model", "Width of the residual stream."),
    ("--heads", "Query heads."),
    ("--kv-heads", "Key/value heads [as --heads]."),
    ("--head-dim", "Head dimension [d-model / heads]."),
    ("--d-ff", "Width of the MLP."),
    ("--vocab", "Size of the vocabulary."),
    ("--mlp-matrices", "Matrices of the MLP: 3 with a gate, 2 without [3]."),
)

TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="A case that takes longer is ended [300 and ten times its prediction].",
)


def selectors(command: F) -> F:
    """Adds the options that choose cases, their suite, device and seed."""
    for option in (
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the inputs."),
        click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu or cuda."),
        click.option("--gated/--ungated", default=None, help="With or without gates [gated]."),
        *(click.option(name, metavar=kind, help=text) for name, kind, text in reversed(SELECTORS)),
        click.option("--suite", metavar="NAME|FILE.toml", help="Start from a suite (`powerbench list suites`)."),
    ):
        command = option(command)
    return command


def shape(command: F) -> F:
    """Adds the options that make up a model's shape."""
    for name, text in reversed(SHAPE):
        command = click.option(name, metavar="N", help=text)(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="powerbench")
def cli() -> None:
    """Benchmarks and rooflines for long-context attention kernels.

    Start with: powerbench sweep --p 2 --ctx 1k..16k
    """


@cli.command()
@selectors
@click.option("-o", "--output", metavar="FILE.jsonl", help="The run file [results/<time>-<device>-<suite>.jsonl].")
@click.option("--resume", is_flag=True, help="Go on with the run file of -o: nothing is measured twice.")
@click.option("--dry-run", is_flag=True, help="Print the plan and measure nothing but the ceilings.")
@click.option("--phases", is_flag=True, help="Also time each phase (launch) alone, of kernels that can be taken apart.")
@click.option(
    "--refine", is_flag=True, help="Then measure more contexts around each crossing until it is known to 10 %."
)
@click.option(
    "--timer", type=click.Choice(["graph", "events", "wall"]), help="How [graph where it can, on a CPU wall]."
)
@click.option(
    "--visits", type=click.IntRange(min=1), metavar="N", help="Rounds over all cases, each a part of the samples [5]."
)
@click.option("--l2", type=click.Choice(["cold", "hot"]), help="State of a GPU's L2 before each sample [cold].")
@TIMEOUT
def sweep(
    output: str | None, resume: bool, dry_run: bool, phases: bool, refine: bool, timer: Mode | None, l2: L2 | None,
    visits: int | None, timeout: float | None, device: str, seed: int, **selected: Any,
) -> None:  # fmt: skip
    """Gate every case for correctness, time it, and say which kernel wins from which context on.

    Exit status: 0 measured; 1 a case was wrong, none could be measured, or the device was lost; 2 bad input; 130
    interrupted.
    """
    if resume and output is None:
        raise UserError("--resume: name the run file to go on with by -o FILE.jsonl")
    suite = _suite(selected)

    turns = Turns.of_environment()
    if turns:
        turns.take()  # before torch is imported: that would disturb the other

    from powerbench.session import Session  # noqa: PLC0415

    how: dict[str, Any] = {"phases": phases, "timer": timer, "l2": l2, "timeout_s": timeout, "refine": refine}
    how["turns"] = turns
    how |= {"visits": visits} if visits else {}
    session = Session.prepare(suite, device, seed, _console(stderr=True), **how)
    if dry_run:
        session.dry_run(_console())
        return
    command = shlex.join(["powerbench", *sys.argv[1:]])
    run = session.sweep(Path(output) if output else session.default_output(), command, resume=resume)

    from powerbench.reports.show import print_run  # noqa: PLC0415

    print_run(run, _console())
    click.echo(f"\nreport: {command_line(['powerbench', 'report', run.path])}")
    statuses = {measurement.status for measurement in run.measurements}
    sys.exit(1 if "wrong" in statuses or "ok" not in statuses else 0)


@cli.command()
@selectors
@TIMEOUT
def verify(device: str, seed: int, timeout: float | None, **selected: Any) -> None:
    """Gate the same cases as sweep for correctness, without timing them.

    Exit status: 0 all that can run are right; 1 a case was wrong, failed, ran out of memory or time, or none could run.
    """
    suite = _suite(selected)

    from powerbench.session import Session  # noqa: PLC0415

    session = Session.prepare(suite, device, seed, _console(stderr=True), timeout_s=timeout)
    measurements = session.verify(_console())
    statuses = {measurement.status for measurement in measurements}
    sys.exit(1 if statuses & {"wrong", "failed", "oom", "timeout"} or "ok" not in statuses else 0)


@cli.command()
@click.argument("run", metavar="RUN.jsonl")
@click.option("--format", "format_", type=click.Choice(["table", "csv", "json", "markdown"]), default="table")
@click.option("--phases", is_flag=True, help="csv and json: one row a phase instead, as `sweep --phases` timed them.")
@click.option("--crossovers", is_flag=True, help="Instead: where one contestant passes another, with intervals.")
def show(run: str, format_: str, phases: bool, crossovers: bool) -> None:
    """Print a run file: one row a case."""
    from powerbench.reports.show import print_run, render, render_phases  # noqa: PLC0415
    from powerbench.reports.show_crossovers import render_crossovers  # noqa: PLC0415
    from powerbench.results.store import load  # noqa: PLC0415

    if phases and format_ not in ("csv", "json"):
        raise UserError(f"--phases goes with --format csv or json; {format_} shows phases where the run has some")
    if phases and crossovers:
        raise UserError("--phases and --crossovers exclude each other: one row is a phase, or a crossover")
    loaded = load(run)
    _warn(loaded.warnings)
    if format_ in ("csv", "json") and not crossovers:  # which have no place for them
        _warn(loaded.spoilers)
    if crossovers:
        click.echo(render_crossovers(loaded, format_, width=_console().width), nl=False)
    elif phases:
        click.echo(render_phases(loaded, format_), nl=False)
    elif format_ == "table":
        print_run(loaded, _console())
    else:
        click.echo(render(loaded, format_), nl=False)


@cli.command()
@click.argument("runs", metavar="RUN.jsonl...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="FILE.html", help="The page [reports/<name of the first run>.html].")
@click.option("--static", metavar="DIR", help="Also write the figures as PNG, SVG and PDF into DIR.")
def report(runs: tuple[str, ...], output: str | None, static: str | None) -> None:
    """Write one self-contained HTML page from one or more run files; the first is what others are compared with."""
    from powerbench.reports.page import write_page  # noqa: PLC0415
    from powerbench.results.store import load  # noqa: PLC0415

    loaded = [load(run) for run in runs]
    _warn(warning for run in loaded for warning in run.warnings)
    page = Path(output) if output else Path("reports") / f"{Path(runs[0]).stem}.html"
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_page(loaded, page)
        written = [f"page: {page}"]
        if static:
            from powerbench.reports.static import write_static  # noqa: PLC0415

            written += [f"figure: {path}" for path in write_static(loaded, Path(static))]
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    click.echo("\n".join(map(printable, written)))


@cli.command()
@click.argument("runs", metavar="RUN.jsonl...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="DIR", default="reports", show_default=True, help="The folder of the pages.")
def index(runs: tuple[str, ...], output: str) -> None:
    """Write a page for each run file, and an index page that links them and says what they found."""
    from powerbench.reports.index import write_index  # noqa: PLC0415
    from powerbench.results.store import load  # noqa: PLC0415

    loaded = [load(run) for run in runs]
    _warn(f"{run.path}: {warning}" for run in loaded for warning in run.warnings)
    try:
        written = write_index(loaded, Path(output))
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    click.echo("\n".join(printable(f"page: {path}") for path in written))


cli.add_command(check)


@cli.group("list")
def list_() -> None:
    """What there is to choose from."""


@list_.command("kernels")
def list_kernels() -> None:
    """Every contestant: its version, what it can do, and how to get it."""
    from powerbench.listing import print_kernels  # noqa: PLC0415

    print_kernels(_console())


@list_.command("suites")
def list_suites() -> None:
    """The preset suites: what each is for, what it costs, and what its page shows."""
    from powerbench.suites import load, presets  # noqa: PLC0415

    for name in presets():
        suite = load(name)
        click.echo(f"{name:10} {suite.purpose} About {suite.minutes} min on an H200.\n{'':10} Shows: {suite.shows}")


@list_.command("models")
def list_models() -> None:
    """The model shapes that `powerbench wsfr --preset` knows."""
    from powerbench.models import presets  # noqa: PLC0415

    for name, model in presets().items():
        click.echo(f"{name:13} {model.counted_parameters / 1e9:5.2f} B  {model.text}\n{'':23}{model.source}")


@cli.command()
@click.option("--preset", metavar="NAME|FILE.toml", help="Model shape (`powerbench list models`) [llama-8b].")
@shape
@click.option("--ctx", default="1k..1m:6", show_default=True, metavar="LIST", help="Context lengths: 64k, 1k..1m ...")
@click.option("--p", default="1,2,3,4", show_default=True, metavar="LIST", help="Degrees of power attention.")
@click.option("--window", metavar="N", help="Sliding window in tokens [the model's own, or 4k].")
@click.option("--full-every", metavar="N", help="Hybrid: one full layer in each N [the model's own, or 6].")
@click.option("--chunk", metavar="N", help="Chunk size of power and linear attention [that of the GPU kernels].")
@click.option("--mode", type=click.Choice(["prefill", "decode"]), default="prefill", show_default=True,
              help="FLOPs of the mean token of a context, or of its last one.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), default="bf16", show_default=True,
              help="Of the numbers in a state or KV cache.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(["table", "csv", "json", "markdown"]), default="table")
def wsfr(format_: str, **selected: Any) -> None:
    """The weight-state FLOP ratio of a model, for each attention that could stand in it, at each context.

    A shape of your own: by options, by a TOML file, or a preset with options that override its keys.
    """
    from powerbench.reports.wsfr_choice import analysis  # noqa: PLC0415
    from powerbench.reports.wsfr_table import print_wsfr, render  # noqa: PLC0415

    chosen = analysis({name: value for name, value in selected.items() if value is not None})
    if format_ == "table":
        print_wsfr(chosen, _console())
    else:
        click.echo(render(chosen, format_), nl=False)


@cli.command()
@click.option("--dtype", metavar="LIST", help="Matmuls to measure: bf16, fp16, tf32, fp32, fp64 [all but fp64].")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu or cuda.")
def ceilings(dtype: str | None, device: str) -> None:
    """Measure what this machine can do at best, beside the datasheet where the device is a known one.

    Matmul rates, copy and read bandwidth; on a CPU with all threads and with one; on a GPU L2 bandwidth and the time of
    a launch. Takes longer over each than a sweep does.
    """
    from powerbench.session import print_ceilings  # noqa: PLC0415

    print_ceilings(dtype, device, _console())


def _suite(selected: dict[str, Any]) -> Suite:
    """Read before torch is imported, so that a slip of the pen is answered at once."""
    from powerbench.suites import chosen  # noqa: PLC0415

    return chosen({name: value for name, value in selected.items() if value is not None})


def _console(*, stderr: bool = False) -> Console:
    from powerbench.console import console  # noqa: PLC0415

    return console(stderr=stderr)


def _warn(warnings: Any) -> None:
    for warning in warnings:
        click.echo(f"powerbench: warning: {printable(str(warning))}", err=True)


def main() -> None:
    """Entry point: whatever is the user's to mend is one line on standard error and status 2; our own faults 70."""
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except (click.ClickException, UserError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"powerbench: error: {printable(' '.join(message.split()))}", err=True)
        sys.exit(2)
    except DeviceLostError as error:
        click.echo(f"powerbench: error: {printable(str(error))}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("powerbench: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader went away (`powerbench show RUN | head`): not an error
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        *where, said = internal(error).split("\n")
        for line in where:
            click.echo(printable(line), err=True)
        click.echo(f"powerbench: {printable(said)}", err=True)
        sys.exit(INTERNAL)
