"""Collects the `Environment` of a run: what a reader needs to judge its numbers or to measure them again."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from powerbench import nvml
from powerbench._version import __version__
from powerbench.results.model import Environment

if TYPE_CHECKING:
    from powerbench.device import Device


def collect(device: Device, contestants: Mapping[str, str | None], warnings: tuple[str, ...] = ()) -> Environment:
    """Environment on `device`; `contestants` are kernel names and the version of the package behind each.

    `warnings` are those of `powerbench.spoilers`, from before the run.
    """
    import torch  # noqa: PLC0415  reports import this package without torch

    from powerbench.device import cpu_model  # noqa: PLC0415  likewise

    uuid = device.uuid()
    gpu = nvml.facts(uuid) if uuid else None
    packages = {"torch": str(torch.__version__), "triton": _triton(), **contestants}
    return Environment(
        device=device.name,
        device_type=device.type,
        cores=torch.cuda.get_device_properties(device.torch).multi_processor_count if gpu else torch.get_num_threads(),
        memory_bytes=device.memory_bytes,
        os=platform.platform(),
        python=platform.python_version(),
        cpu=f"{cpu_model()}, {platform.machine()}, {os.cpu_count()} cores",
        driver=(_nvidia_driver() or gpu.driver) if gpu else None,
        packages={name: version for name, version in packages.items() if version is not None},
        commit=_commit(),
        powerbench=__version__,
        cuda=torch.version.cuda if gpu else None,
        gpu=gpu,
        warnings=warnings,
        cpu_quota=cpu_quota(),
    )


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many CPUs this process may use in the mean, the least of its control groups' (v2 and v1); None: no limit."""
    found = []
    for line in _lines(root / "proc/self/cgroup"):  # 0::/a/b, or 4:cpu,cpuacct:/a/b
        _, controllers, where = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        place = Path(where.lstrip("/"))
        for part in (place, *place.parents):  # a container sees its own group as the root
            group = mount / part
            if controllers:
                values = [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
            else:
                values = " ".join(_lines(group / "cpu.max")).split()
            if len(values) == 2 and all(value.isdecimal() and int(value) for value in values):  # else max, or -1
                found.append(int(values[0]) / int(values[1]))
    return min(found, default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _triton() -> str | None:
    """Its version, also where no contestant uses it; None: not installed."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def _nvidia_driver() -> str | None:
    """The version line of the loaded NVIDIA kernel module."""
    path = Path("/proc/driver/nvidia/version")
    return path.read_text().splitlines()[0].partition(":")[2].strip() if path.exists() else None


def _commit() -> str | None:
    """powerbench's own commit, with -dirty where its tree was changed; None when it is not run from a checkout.

    A copied tree has no history to ask: there the variable POWERBENCH_COMMIT may say what it is a copy of.
    """
    if "POWERBENCH_COMMIT" in os.environ:
        return os.environ["POWERBENCH_COMMIT"]
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
