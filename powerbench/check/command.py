"""`powerbench check`: its options, what goes with what, and which library call answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from powerbench.errors import UserError
from powerbench.printable import printable

if TYPE_CHECKING:
    from powerbench.console import Console

DEFAULT_ROUNDS = 4


def _share(context: click.Context, parameter: click.Parameter, value: str) -> float:
    """3% or 0.03, in parts of one."""
    try:
        number = float(value.strip().removesuffix("%")) / (100 if value.strip().endswith("%") else 1)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise click.BadParameter(f"{value!r} is not a share such as 3% or 0.03", context, parameter)
    return number


@click.command()
@click.argument("runs", metavar="[[BASELINE] NEW]", nargs=-1)
@click.option("--against", metavar="GITREF", help="Measure this code and that commit now, in turns, and compare.")
@click.option("--calibrate", is_flag=True, help="Measure this code against itself: how noisy is this machine?")
@click.option("--baseline-dir", metavar="DIR", help="Compare with the baseline that DIR holds of the device.")
@click.option("--update-baseline", is_flag=True, help="Make NEW, or what is measured now, the baseline in DIR.")
@click.option("--suite", metavar="NAME|FILE.toml", help="What to measure [ci].")
@click.option("--kernels", metavar="LIST", help="Families or rows to measure [what suits the device].")
@click.option("--device", metavar="NAME", help="Where to measure: auto, cpu or cuda [auto].")
@click.option(
    "--rounds", type=click.IntRange(1, 50), metavar="N", help="Two pairs of runs, A B and B A, at most N times [4]."
)
@click.option("--keep", metavar="DIR", help="Keep the run files of what is measured.")
@click.option("--noise", metavar="FILE", help="The calibration [in DIR with the baselines, else the user's own].")
@click.option(
    "--threshold", callback=_share, default="3%", metavar="SHARE", show_default=True, help="A smaller change is none."
)
@click.option(
    "--false-discovery",
    callback=_share,
    default="1%",
    metavar="SHARE",
    show_default=True,
    help="Of what is called a change.",
)
@click.option("--allow-inconclusive", type=click.IntRange(0), default=0, show_default=True, help="So many are fine.")
@click.option("--ignore-versions", is_flag=True, help="Compare contestants of other versions too.")
@click.option("--controls", default="sdpa,flash,fla", show_default=True, help="Contestants that are not on trial.")
@click.option("--min-roof", multiple=True, metavar="[WHAT=]SHARE", help="Demand: 0.5, or power@64k=0.5.")
@click.option("--max-ms", multiple=True, metavar="[WHAT=]MS", help="Demand: 20, or power-triton@64k=1.2.")
@click.option("--min-speedup", multiple=True, metavar="A:B[@CTX]=X", help="Demand: power:sdpa@64k=6.")
@click.option("--json", metavar="FILE", help="Write JSON; - is standard output, in place of the table.")
@click.option("--junit", metavar="FILE", help="Write JUnit XML.")
@click.option("--markdown", metavar="FILE", help="Write markdown; $GITHUB_STEP_SUMMARY gets it anyway.")
def check(runs: tuple[str, ...], **options: Any) -> None:
    """Is it slower than before? Two stored runs, or this code against a commit, case by case.

    Exit status: 0 no regression; 1 a regression, or a demand not met; 2 bad usage; 3 more inconclusive than allowed;
    4 nothing was compared.
    """
    _check_usage(runs, options)
    from powerbench.check.demands import parse  # noqa: PLC0415
    from powerbench.check.gate import Gate  # noqa: PLC0415
    from powerbench.check.model import Policy  # noqa: PLC0415
    from powerbench.check.outputs.write import write  # noqa: PLC0415

    demands = [parse("min-roof", text) for text in options["min_roof"]]
    demands += [parse("max-ms", text) for text in options["max_ms"]]
    demands += [parse("min-speedup", text) for text in options["min_speedup"]]
    controls = tuple(name.strip() for name in options["controls"].split(","))
    policy = Policy(
        threshold=options["threshold"],
        false_discovery_rate=options["false_discovery"],
        allow_inconclusive=options["allow_inconclusive"],
        ignore_versions=options["ignore_versions"],
        controls=controls,
    )
    gate = Gate(
        policy=policy,
        demands=tuple(demands),
        folder=_path(options["baseline_dir"]),
        noise=_path(options["noise"]),
        suite=options["suite"] or "ci",
        device=options["device"] or "auto",
        kernels=options["kernels"],
        rounds=options["rounds"] or DEFAULT_ROUNDS,
        keep=_path(options["keep"]),
        say=lambda text: click.echo(printable(text), err=True),
    )
    if options["calibrate"]:
        gate.calibrate(_console())
        return
    if options["update_baseline"]:
        click.echo(printable(f"baseline: {gate.update_baseline(*runs)}"))
        return
    comparison = gate.against(options["against"]) if options["against"] else gate.compare(runs)
    write(comparison, {name: options[name] for name in ("json", "junit", "markdown")}, _console())
    sys.exit(comparison.exit_status)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _check_usage(runs: tuple[str, ...], options: dict[str, Any]) -> None:
    """Raise UserError for what does not go together; no option is without effect."""
    against, calibrate, folder = options["against"], options["calibrate"], options["baseline_dir"]
    demands = options["min_roof"] or options["max_ms"] or options["min_speedup"]
    ways = "BASELINE NEW, --against GITREF, --baseline-dir DIR, --calibrate, or NEW with a demand"
    if len(runs) > 2:
        raise UserError(f"check takes one or two run files, not {len(runs)}")
    if bool(against) + bool(calibrate) + bool(runs) > 1:
        raise UserError(f"run files, --against and --calibrate exclude each other; give one of {ways}")
    if options["update_baseline"] and (not folder or calibrate):
        raise UserError("--update-baseline: goes with --baseline-dir DIR, and with NEW or what is measured now")
    if not (against or calibrate or folder or len(runs) == 2 or (runs and demands)):
        raise UserError(f"nothing to compare with; give one of {ways}")
    if folder and (against or len(runs) == 2):
        raise UserError("--baseline-dir: there is a baseline already; give at most NEW beside it")
    if demands and (calibrate or options["update_baseline"]):
        raise UserError("demands are held against a run that is compared; not with --calibrate or --update-baseline")
    idle = [name for name in ("suite", "kernels", "device", "keep") if runs and options[name]]
    idle += ["rounds"] if options["rounds"] and not (against or calibrate) else []
    idle += ["noise"] if options["noise"] and against else []
    if idle:
        raise UserError(f"--{idle[0]}: has no effect here; powerbench check --help says with what it goes")


def _console() -> Console:
    from powerbench.console import console  # noqa: PLC0415

    return console(width_of_a_pipe=140)  # the table has long case ids
