"""Which device this is: its name, its memory, and by which UUID NVML knows it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from powerbench import timing
from powerbench.errors import UserError


class DeviceError(UserError):
    """A device that this machine lacks: the message says which was asked for and what there is."""


@dataclass(frozen=True)
class Device:
    """The device a run measures on. memory_bytes: what a case may use, free when the run began."""

    type: str  # "cpu" or "cuda"
    name: str
    memory_bytes: int

    @property
    def torch(self) -> torch.device:
        """Where tensors go."""
        return torch.device(self.type)

    @property
    def slug(self) -> str:
        """The name fit for a file name, for example nvidia-h200."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def uuid(self) -> str | None:
        """The GPU's UUID without the GPU- or MIG- that NVML puts before it; None on a CPU."""
        return str(torch.cuda.get_device_properties(self.torch).uuid) if self.type == "cuda" else None

    def peak_memory_bytes(self, call: Callable[[], object]) -> int | None:
        """Most device memory allocated during `call`, inputs included; None on a CPU, where torch does not count."""
        if self.type != "cuda":
            call()
            return None
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())

    def release(self) -> None:
        """Give back the device memory that this process keeps for later, so that another can have it."""
        if self.type == "cuda":
            timing.release()
            torch.cuda.empty_cache()


def pick(name: str) -> Device:
    """The device for `--device`: auto, cpu or cuda. Raises DeviceError where there is none."""
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"--device: {name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device: cuda was asked for, but torch sees no CUDA device here; allowed are auto, cpu")
    if name != "cpu" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return Device("cuda", torch.cuda.get_device_name(), free)
    return Device("cpu", cpu_name(), _available_memory_bytes())


def cpu_name() -> str:
    """The processor with the threads that torch uses: what a run on a CPU calls its device."""
    return f"{cpu_model()} ({torch.get_num_threads()} threads)"


def cpu_model() -> str:
    """The processor as /proc/cpuinfo names it."""
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            names = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    except OSError:  # not a Linux: the plain word will do
        names = []
    return names[0] if names else "CPU"


def _available_memory_bytes() -> int:
    """What Linux says can be had without swapping; elsewhere all physical memory."""
    try:
        with open("/proc/meminfo") as meminfo:
            fields = dict(line.split(":", 1) for line in meminfo)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
