"""Which device this is, and what it can do at best: its ceilings, measured by the run itself on random data."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from powerbench import timing
from powerbench.errors import UserError
from powerbench.kernels.kernel import TORCH_DTYPES
from powerbench.roofline import Ceilings
from powerbench.timing import Policy, time_call

# A few shapes, the best counts: libraries differ in which size they like. FLOPs of one call stay below two seconds.
MATMUL_SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (4096, 8192)}
COPY_BYTES = {"cpu": 256 * 1024**2, "cuda": 2 * 1024**3}
CEILING_POLICY = Policy(min_samples=10, min_seconds=0.3, max_samples=100)


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
    """The processor as /proc/cpuinfo names it, with the threads that torch uses."""
    model = "CPU"
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            names = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
        model = names[0] if names else model
    except OSError:
        pass  # not a Linux: the plain word will do
    return f"{model} ({torch.get_num_threads()} threads)"


def _available_memory_bytes() -> int:
    """What Linux says can be had without swapping; elsewhere all physical memory."""
    try:
        with open("/proc/meminfo") as meminfo:
            fields = dict(line.split(":", 1) for line in meminfo)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure_ceilings(device: Device, dtypes: Iterable[str]) -> Ceilings:
    """The best matmul rate of each dtype and the copy bandwidth (bytes read plus written).

    Each from the fastest of its samples: a ceiling is what the machine can do, and other load only takes from it.
    """
    return Ceilings(
        matmul_flops_per_s={dtype: _matmul_rate(device, dtype) for dtype in dtypes},
        copy_bytes_per_s=_copy_rate(device),
    )


def _best_seconds(call: Callable[[], object], device: Device) -> float:
    call()
    return min(time_call(call, device.torch, CEILING_POLICY).ms) / 1e3


def _matmul_rate(device: Device, dtype: str) -> float:
    rates = []
    for n in MATMUL_SIZES[device.type]:
        a, b = (torch.randn(n, n, device=device.torch).to(TORCH_DTYPES[dtype]) for _ in range(2))
        out = torch.empty_like(a)
        rates.append(2 * n**3 / _best_seconds(lambda a=a, b=b, out=out: torch.matmul(a, b, out=out), device))  # type: ignore[misc]
    return max(rates)


def _copy_rate(device: Device) -> float:
    source = torch.randint(0, 255, (COPY_BYTES[device.type],), dtype=torch.uint8, device=device.torch)
    target = torch.empty_like(source)
    return 2 * source.numel() / _best_seconds(lambda: target.copy_(source), device)
