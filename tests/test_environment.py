"""The environment of a run: what a reader needs to judge its numbers, on a CPU and on a GPU that is not there."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import msgspec
import pytest
import torch

from powerbench.device import Device, cpu_model
from powerbench.reports.machine import gpu_facts
from powerbench.results.environment import collect
from powerbench.results.model import Environment
from tests import runs
from tests.fakes import CPU
from tests.test_nvml import library


@pytest.fixture
def gpu(monkeypatch):
    """What torch says of an H200."""
    properties = SimpleNamespace(uuid="1234", multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return Device("cuda", "NVIDIA H200", 2**37)


def test_on_a_cpu():
    found = collect(CPU, {"sdpa-cpu": "2.13.0", "flash-4": None})
    assert found.gpu is None
    assert found.cuda is None
    assert found.driver is None
    assert found.cpu.startswith(cpu_model())
    assert {"torch", "sdpa-cpu"} <= set(found.packages)
    assert "flash-4" not in found.packages


def test_triton_is_named_where_it_is_installed():
    from importlib.metadata import version

    pytest.importorskip("triton")
    assert collect(CPU, {}).packages["triton"] == version("triton")


def test_on_a_gpu(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", library())
    found = collect(gpu, {})
    assert (found.device, found.cores, found.cuda) == ("NVIDIA H200", 132, "13.0")
    assert found.gpu.uuid == "GPU-1234"
    assert found.gpu.ecc == "on"
    assert found.driver
    assert msgspec.json.decode(msgspec.json.encode(found), type=Environment) == found


def test_on_a_gpu_without_nvml(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = collect(gpu, {})
    assert found.gpu.uuid == "GPU-1234"
    assert found.gpu.nvml.startswith("unavailable: nvidia-ml-py is not installed")
    lines = dict(gpu_facts(found))
    assert lines["Modes"] == "persistence mode unavailable, ECC unavailable, MIG unavailable, power limit unavailable"
    assert "SM unavailable (default unavailable, most unavailable)" in lines["Application clocks"]


def test_the_page_has_every_fact():
    words = "\n".join(value for _, value in gpu_facts(runs.header("NVIDIA H200").environment))
    for fact in msgspec.structs.asdict(runs.FACTS).values():
        assert str(700 if fact == 700.0 else fact or "unavailable") in words or fact == runs.FACTS.driver
    assert gpu_facts(runs.header().environment) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_gpu():
    from powerbench.device import pick

    found = collect(pick("cuda"), {})
    assert found.gpu.uuid.startswith(("GPU-", "MIG-"))
    assert found.cuda


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/1\n2:memory:/docker/1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "junk\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, quota):
    from powerbench.results.environment import cpu_quota

    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota


def test_half_a_cpu_is_another_machine():
    from powerbench.check.compare import compare
    from tests.test_check import one, run

    whole, half = run(one(seed=1)), run(one(seed=2), cpu_quota=0.5)
    found = compare(whole, half)
    assert {case.verdict for case in found.cases} == {"not comparable"}
    assert "CPUs that the container may use: no limit against 0.5" in found.notes
    assert {case.verdict for case in compare(half, half).cases} == {"ok"}
