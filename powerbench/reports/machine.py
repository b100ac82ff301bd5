"""What a run knows of its machine, as the page lists it: names, versions, settings of the GPU, each ceiling."""

from __future__ import annotations

from powerbench.nvml import UNAVAILABLE
from powerbench.reports.ceilings import ceiling_rows
from powerbench.reports.text import si, significant
from powerbench.results.environments import differences, differences_text
from powerbench.results.model import FIRST, Environment, Run
from powerbench.roofline import Ceilings

_GIB = 2**30


def environment_lines(run: Run) -> list[tuple[str, str]]:
    """(name, value) pairs: what ran on which machine with which versions."""
    machine: Environment = run.header.environment
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    cores = "threads" if machine.device_type == "cpu" else "multiprocessors"
    pairs: list[tuple[str, str | None]] = [
        ("Device", f"{machine.device}, {machine.cores} {cores}, {machine.memory_bytes / _GIB:.0f} GiB"),
        ("CPU", machine.cpu),
        ("Driver", machine.driver),
        *gpu_facts(machine),
        ("System", f"{machine.os}, Python {machine.python}"),
        ("Packages", packages),
        ("powerbench", f"{machine.powerbench}, commit {machine.commit or 'unknown'}"),
        ("Run", f"suite {run.header.suite}, seed {run.header.seed}, started {run.header.started}"),
        *_more_environments(run),
        ("File", run.path),
    ]
    return [(name, value) for name, value in pairs if value]


def _more_environments(run: Run) -> list[tuple[str, str]]:
    """(name, value) pairs: in what each environment beside the header's differs from it, and what it measured."""
    environments = run.environments
    lines = []
    for record in {record.id: record for record in run.more if record.id != FIRST}.values():
        cases = sum(one.environment == record.id for one in run.measurements)
        found = differences(environments[FIRST], environments[record.id])
        differing = differences_text(found, len(found)) or "no difference"
        lines.append(
            (f"Environment {record.id}", f"{cases} cases; {differing}; started {record.started}: {record.command}")
        )
    return lines


def ceiling_lines(ceilings: Ceilings, device: str) -> list[tuple[str, str]]:
    """(name, value) pairs: the rates that the roofline uses, then every ceiling that is stored with its samples."""
    memory = ceilings.memory_bytes_per_s
    matmul = [
        (f"{dtype} matmul", f"{significant(rate / 1e12)} TFLOP/s, above {significant(rate / memory)} FLOP/byte")
        for dtype, rate in ceilings.matmul_flops_per_s.items()
    ]
    copy = ("Copy bandwidth", f"{si(ceilings.copy_bytes_per_s, ' ')}B/s")
    return [*matmul, copy, ("Source", ceilings.source), *ceiling_facts(ceilings, device)]


def gpu_facts(machine: Environment) -> list[tuple[str, str]]:
    """(name, value) pairs; none on a CPU, and none of a run that was measured before they were recorded."""
    gpu = machine.gpu
    if gpu is None:
        return []
    clocks = (
        f"SM {_mhz(gpu.application_sm_mhz)} (default {_mhz(gpu.default_application_sm_mhz)}, "
        f"most {_mhz(gpu.max_sm_mhz)}), memory {_mhz(gpu.application_memory_mhz)} (most {_mhz(gpu.max_memory_mhz)})"
    )
    power = UNAVAILABLE if gpu.power_limit_w is None else f"{gpu.power_limit_w:.0f} W"
    modes = f"persistence mode {gpu.persistence_mode}, ECC {gpu.ecc}, MIG {gpu.mig}, power limit {power}"
    return [
        ("GPU", gpu.uuid),
        ("CUDA", f"{machine.cuda or UNAVAILABLE}; the driver runs up to {gpu.cuda_driver}"),
        ("Application clocks", clocks),
        ("Modes", modes),
        ("NVML", gpu.nvml),
    ]


def ceiling_facts(ceilings: Ceilings, device: str) -> list[tuple[str, str]]:
    """A line for each ceiling that is stored with its samples."""
    return [
        (
            f"Measured: {row.name}",
            f"best {row.best}, median {row.median}, spread {row.spread or UNAVAILABLE}, {row.samples} samples; {row.of}"
            + (f"; datasheet {row.datasheet}" if row.datasheet else ""),
        )
        for row in ceiling_rows(ceilings, device)
    ]


def _mhz(value: int | None) -> str:
    return UNAVAILABLE if value is None else f"{value} MHz"
