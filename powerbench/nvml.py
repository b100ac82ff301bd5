"""What NVML says of a GPU: the only file that knows nvidia-ml-py (`pynvml`), an extra.

`opened` and `connect` give a `Gpu`, whose `ask` is any query of NVML by its name in nvidia-ml-py: a value, or None
where this GPU, this driver or this nvidia-ml-py does not answer. `facts` are the answers that stay the same during a
run; `powerbench.telemetry` asks for those that do not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from powerbench.bounds import Count

UNAVAILABLE = "unavailable"


class NvmlUnavailableError(Exception):
    """There is no NVML here, or it does not know the GPU; the message says which, in one line."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU's settings as NVML reports them when a run begins. What it cannot say is "unavailable", a number None.

    NVML has no query for locked clocks (`nvidia-smi -lgc`). Application clocks are the older way to pin them: where
    they differ from their default, somebody has.
    """

    nvml: str  # the version of the driver's NVML, or why there is none
    uuid: str = UNAVAILABLE  # as nvidia-smi -L prints it
    driver: str = UNAVAILABLE
    cuda_driver: str = UNAVAILABLE  # the newest CUDA that the driver runs
    persistence_mode: str = UNAVAILABLE  # on or off, like the next two
    ecc: str = UNAVAILABLE
    mig: str = UNAVAILABLE
    application_sm_mhz: Count | None = None
    default_application_sm_mhz: Count | None = None
    max_sm_mhz: Count | None = None
    application_memory_mhz: Count | None = None
    max_memory_mhz: Count | None = None
    power_limit_w: float | None = None  # the one enforced


class Gpu:
    """One GPU, opened. `library` is nvidia-ml-py's module, or what stands in for it in a test."""

    def __init__(self, library: Any, handle: Any, uuid: str) -> None:
        self.library = library
        self.handle = handle
        self.uuid = uuid

    def ask(self, query: str, *arguments: object) -> Any:
        """The answer to `query`, a function of nvidia-ml-py that takes a device handle; None where there is none."""
        return _ask(self.library, query, self.handle, *arguments)


@contextlib.contextmanager
def opened(uuid: str) -> Iterator[Gpu]:
    """The GPU of this UUID (without its GPU- or MIG-) for as long as the block lasts. Raises NvmlUnavailableError."""
    gpu = connect(uuid)
    try:
        yield gpu
    finally:
        gpu.library.nvmlShutdown()


def connect(uuid: str) -> Gpu:
    """The GPU of this UUID, as `opened` has it, for as long as the process lives. Raises NvmlUnavailableError."""
    library = load()
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise NvmlUnavailableError(f"NVML does not start: {error}") from error
    try:
        return _find(library, uuid)
    except NvmlUnavailableError:
        library.nvmlShutdown()
        raise


def load() -> Any:
    """nvidia-ml-py's module. Raises NvmlUnavailableError where it is not installed."""
    try:
        import pynvml  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415  an extra
    except ImportError as error:
        raise NvmlUnavailableError("nvidia-ml-py is not installed (pip install nvidia-ml-py)") from error
    return pynvml


def facts(uuid: str) -> Facts:
    """Of the GPU of this UUID. Never raises: where NVML is missing, `nvml` says why and the rest is unavailable."""
    try:
        with opened(uuid) as gpu:
            return _facts(gpu)
    except NvmlUnavailableError as error:
        return Facts(nvml=f"{UNAVAILABLE}: {error}", uuid=f"GPU-{uuid}")


def _find(library: Any, uuid: str) -> Gpu:
    """By UUID, because CUDA and NVML may number the GPUs differently."""
    handle = _ask(library, "nvmlDeviceGetHandleByUUID", f"GPU-{uuid}")
    if handle is not None:
        return Gpu(library, handle, f"GPU-{uuid}")
    part = _ask(library, "nvmlDeviceGetHandleByUUID", f"MIG-{uuid}")
    whole = None if part is None else _ask(library, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", part)
    if whole is None:
        raise NvmlUnavailableError(f"NVML knows no GPU {uuid}")
    return Gpu(library, whole, f"MIG-{uuid}")  # clocks, ECC and the rest belong to the whole GPU


def _facts(gpu: Gpu) -> Facts:
    library, ask = gpu.library, gpu.ask
    sm, memory = library.NVML_CLOCK_SM, library.NVML_CLOCK_MEM
    cuda = _ask(library, "nvmlSystemGetCudaDriverVersion_v2")  # 12080 is 12.8
    ecc, mig = ask("nvmlDeviceGetEccMode"), ask("nvmlDeviceGetMigMode")  # (now, after the next reset)
    power = ask("nvmlDeviceGetEnforcedPowerLimit")  # milliwatts
    return Facts(
        nvml=_ask(library, "nvmlSystemGetNVMLVersion") or UNAVAILABLE,
        uuid=gpu.uuid,
        driver=_ask(library, "nvmlSystemGetDriverVersion") or UNAVAILABLE,
        cuda_driver=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else UNAVAILABLE,
        persistence_mode=_switch(ask("nvmlDeviceGetPersistenceMode")),
        ecc=_switch(ecc[0] if ecc else None),
        mig=_switch(mig[0] if mig else None),
        application_sm_mhz=ask("nvmlDeviceGetApplicationsClock", sm),
        default_application_sm_mhz=ask("nvmlDeviceGetDefaultApplicationsClock", sm),
        max_sm_mhz=ask("nvmlDeviceGetMaxClockInfo", sm),
        application_memory_mhz=ask("nvmlDeviceGetApplicationsClock", memory),
        max_memory_mhz=ask("nvmlDeviceGetMaxClockInfo", memory),
        power_limit_w=power / 1e3 if power else None,
    )


def _ask(library: Any, query: str, *arguments: object) -> Any:
    function = getattr(library, query, None)  # deprecated queries leave nvidia-ml-py one day
    if function is None:
        return None
    mismatch = getattr(library, "NVMLLibraryMismatchError", library.NVMLError)  # a driver older than nvidia-ml-py
    try:
        return function(*arguments)
    except (library.NVMLError, mismatch):  # not supported by this GPU, not permitted, not in this driver
        return None


def _switch(value: int | None) -> str:
    return UNAVAILABLE if value is None else ("on" if value else "off")
