"""NVML, by a stand-in for nvidia-ml-py: what it says is recorded, and what it cannot say breaks nothing."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
import torch

from powerbench import nvml
from powerbench.nvml import Facts, facts


class NVMLError(Exception):
    """As nvidia-ml-py raises."""


def refuse(*_):
    raise NVMLError("Not Supported")


def library(**changes):
    """An H200 called GPU-1234, as nvidia-ml-py would answer; it counts what is open. None takes a function away."""
    lib = SimpleNamespace(NVMLError=NVMLError, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, open=0)

    def by_uuid(uuid):
        if uuid != "GPU-1234":
            raise NVMLError("Not Found")
        return "handle"

    def count(step):
        lib.open += step

    answers = {
        "nvmlInit": lambda: count(1),
        "nvmlShutdown": lambda: count(-1),
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlSystemGetNVMLVersion": lambda: "13.580.159.04",
        "nvmlSystemGetDriverVersion": lambda: "580.159.04",
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 12080,
        "nvmlDeviceGetPersistenceMode": lambda handle: 1,
        "nvmlDeviceGetEccMode": lambda handle: [1, 1],
        "nvmlDeviceGetMigMode": lambda handle: [0, 1],
        "nvmlDeviceGetApplicationsClock": lambda handle, clock: {1: 1500, 2: 3201}[clock],
        "nvmlDeviceGetDefaultApplicationsClock": lambda handle, clock: {1: 1980, 2: 3201}[clock],
        "nvmlDeviceGetMaxClockInfo": lambda handle, clock: {1: 1980, 2: 3201}[clock],
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700000,
    }
    vars(lib).update({name: answer for name, answer in {**answers, **changes}.items() if answer})
    return lib


WHOLE = Facts(
    nvml="13.580.159.04", uuid="GPU-1234", driver="580.159.04", cuda_driver="12.8", persistence_mode="on", ecc="on",
    mig="off", application_sm_mhz=1500, default_application_sm_mhz=1980, max_sm_mhz=1980,
    application_memory_mhz=3201, max_memory_mhz=3201, power_limit_w=700.0,
)  # fmt: skip


def test_all_facts(install):
    lib = library()
    install(lib)
    assert facts("1234") == WHOLE
    assert lib.open == 0


QUERIES = [name for name in vars(library()) if name.startswith(("nvmlDeviceGet", "nvmlSystem"))]


@pytest.mark.parametrize("gone", [None, refuse], ids=["not in this nvidia-ml-py", "not supported"])
@pytest.mark.parametrize("query", [name for name in QUERIES if name != "nvmlDeviceGetHandleByUUID"])
def test_one_query_less_costs_one_fact(install, query, gone):
    lib = library(**{query: gone})
    install(lib)
    found = msgspec.structs.asdict(facts("1234"))
    lost = {name for name, value in msgspec.structs.asdict(WHOLE).items() if found[name] != value}
    assert lost
    assert all(found[name] in ("unavailable", None) for name in lost)
    assert len(lost) <= 2  # a clock query answers for SM and memory
    assert lib.open == 0


def test_without_nvidia_ml_py(install):
    install(None)  # what makes `import pynvml` raise ImportError
    found = facts("1234")
    assert found == Facts(nvml="unavailable: nvidia-ml-py is not installed (pip install nvidia-ml-py)", uuid="GPU-1234")
    assert (found.ecc, found.driver, found.max_sm_mhz) == ("unavailable", "unavailable", None)


def test_without_a_driver(install):
    def no_driver():
        raise NVMLError("NVML Shared Library Not Found")

    install(library(nvmlInit=no_driver))
    assert facts("1234").nvml == "unavailable: NVML does not start: NVML Shared Library Not Found"


def test_a_gpu_that_nvml_does_not_know(install):
    lib = library()
    install(lib)
    assert facts("5678").nvml == "unavailable: NVML knows no GPU 5678"
    assert lib.open == 0


def test_a_part_of_a_gpu_has_the_settings_of_the_whole(install):
    """A MIG instance has a UUID of its own, and most queries do not answer for it."""

    def by_uuid(uuid):
        if uuid != "MIG-77":
            raise NVMLError("Not Found")
        return "part"

    def ecc(handle):
        return [1, 1] if handle == "whole" else refuse()

    changes = {"nvmlDeviceGetHandleByUUID": by_uuid, "nvmlDeviceGetEccMode": ecc}
    install(library(**changes, nvmlDeviceGetDeviceHandleFromMigDeviceHandle=lambda part: "whole"))
    assert (facts("77").uuid, facts("77").ecc) == ("MIG-77", "on")


def test_any_query_can_be_asked(install):
    """What telemetry stands on."""
    install(library(nvmlDeviceGetTemperature=lambda handle, sensor: 61))
    with nvml.opened("1234") as gpu:
        assert gpu.ask("nvmlDeviceGetTemperature", 0) == 61
        assert gpu.ask("nvmlDeviceGetMoonPhase") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpu():
    from powerbench.device import pick

    pytest.importorskip("pynvml")
    found = facts(pick("cuda").uuid())
    assert found.uuid.startswith(("GPU-", "MIG-"))
    assert "unavailable" not in (found.nvml, found.driver, found.cuda_driver)
    assert found.max_sm_mhz
