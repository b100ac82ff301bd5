"""What may spoil the times of a run before it begins: others on the GPU, a CPU that is busy or not at full speed.

Each is a line that the run says, keeps and shows; none keeps it from running.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from powerbench import nvml

if TYPE_CHECKING:
    from powerbench.device import Device

BUSY_GPU_PERCENT = 10  # of the time, as NVML counts it; making a context, as this process has done, stays below
BUSY_CPU = 0.25  # processes that want to run, of the last minute, for each processor
PROCESS_QUERIES = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetMPSComputeRunningProcesses")
VIRTUAL_GPU = 2  # NVML_GPU_VIRTUALIZATION_MODE_VGPU
GOVERNORS = "/sys/devices/system/cpu"


def spoilers(device: Device) -> tuple[str, ...]:
    """Warnings, a line each, on the device that a run is about to measure. Ask before it has done any work."""
    uuid = device.uuid()
    return tuple(on_gpu(uuid) if uuid else on_cpu())


def on_gpu(uuid: str) -> list[str]:
    """Of the GPU of this UUID, on which this process has a context."""
    try:
        with nvml.opened(uuid) as gpu:
            return [*_others(gpu), *_shared(gpu)]
    except nvml.NvmlUnavailableError as error:
        return [f"clocks, throttling and others on the GPU are unavailable: {error}"]


def on_cpu(folder: Path = Path(GOVERNORS)) -> list[str]:
    """Of the processors of this machine; where Linux does not say, nothing. `folder` is theirs in /sys."""
    found = []
    governors = {text for path in folder.glob("cpu[0-9]*/cpufreq/scaling_governor") if (text := _text(path))}
    if governors - {"performance"}:
        named = ", ".join(sorted(governors))
        found.append(f"the CPU governor is {named}: the clock may change while times are taken; performance holds it")
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load > BUSY_CPU * processors:
        found.append(f"the CPU is in use: load average {load:.2f} on {processors} processors over the last minute")
    return found


def _others(gpu: nvml.Gpu) -> list[str]:
    """Other processes that compute on the GPU, and how busy it is.

    In a container NVML may give process ids as the host counts them. This process has a context, so where it is not in
    the list by its own id, one of the others is this one.
    """
    lists: Iterable[list[object]] = (gpu.ask(query) or [] for query in PROCESS_QUERIES)
    ids = {int(process.pid) for processes in lists for process in processes}  # type: ignore[attr-defined]
    others = ids - {os.getpid()}
    number = len(others) if os.getpid() in ids else max(0, len(others) - 1)
    busy = gpu.ask("nvmlDeviceGetUtilizationRates")
    found = []
    if number:
        named = f" ({', '.join(map(str, sorted(others)))})" if number == len(others) else ""
        found.append(f"the GPU is in use: {number} other process{'es' * (number > 1)} on it{named}")
    if busy is not None and busy.gpu > BUSY_GPU_PERCENT:
        found.append(f"the GPU was busy {busy.gpu} % of the time just before the run")
    return found


def _shared(gpu: nvml.Gpu) -> list[str]:
    """Whether what this process sees is a part of a GPU."""
    found = []
    mig = gpu.ask("nvmlDeviceGetMigMode")  # (now, after the next reset)
    if gpu.uuid.startswith("MIG-") or (mig and mig[0]):
        found.append("MIG is on: the GPU's other instances share its power and clocks")
    if gpu.ask("nvmlDeviceGetVirtualizationMode") == VIRTUAL_GPU:
        found.append("this is a virtual GPU: others may share it, unseen")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
