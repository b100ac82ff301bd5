"""A folder of baselines: one run file a device class, and beside it the noise of the machine that calibrated."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import msgspec

from powerbench.check.noise import Calibration
from powerbench.errors import UserError
from powerbench.results.model import Run
from powerbench.results.store import load


def slug(device: str) -> str:
    """The device's name fit for a file name, as `powerbench.device.Device.slug`."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def baseline_path(folder: Path, device: str) -> Path:
    """Where the baseline of a device class is kept."""
    return folder / f"{slug(device)}.jsonl"


def load_baseline(folder: Path, device: str) -> Run:
    """Raises UserError where there is none for this device."""
    path = baseline_path(folder, device)
    if not path.exists():
        have = ", ".join(sorted(file.stem for file in folder.glob("*.jsonl"))) or "none"
        raise UserError(
            f"--baseline-dir: {folder} has no baseline for {device} ({path.name}; there is {have}); "
            "--update-baseline writes one"
        )
    return load(path)


def update_baseline(folder: Path, run: Run) -> Path:
    """Make this run the baseline of its device. Raises UserError where it holds no time."""
    if not any(one.status == "ok" for one in run.measurements):
        raise UserError(f"--update-baseline: {run.path} holds no measured case")
    path = baseline_path(folder, run.header.environment.device)
    if path.exists() and path.samefile(run.path):
        raise UserError(f"--update-baseline: {run.path} is that baseline already")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        shutil.copyfile(run.path, fresh)
        fresh.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    return path


def noise_path(device: str, folder: Path | None) -> Path:
    """Where a machine's calibration is kept: with its baselines, or else with the user's state files."""
    if folder is None:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        folder = Path(state) / "powerbench"
    return folder / f"{slug(device)}.noise.json"


def load_calibration(path: Path) -> Calibration | None:
    """None where there is no such file. Raises UserError for one that is no calibration."""
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a calibration: {' '.join(str(error).split())}") from None


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Raises UserError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(calibration), indent=1) + b"\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
