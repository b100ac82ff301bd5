"""What a run knows of its machine beyond names, as the page lists it: settings of the GPU, samples of each ceiling."""

from __future__ import annotations

from powerbench.nvml import UNAVAILABLE
from powerbench.reports.ceilings import ceiling_rows
from powerbench.results.model import Environment
from powerbench.roofline import Ceilings


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
