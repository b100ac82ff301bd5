"""What may spoil times is said when a sweep begins, kept in its file and shown; machines are made up."""

from __future__ import annotations

import io
import os
from types import SimpleNamespace

import msgspec
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from powerbench import session, spoilers
from powerbench.cli import cli
from powerbench.reports.page import page
from powerbench.reports.show import render
from powerbench.results.store import load
from powerbench.session import Session
from powerbench.spoilers import on_cpu, on_gpu
from powerbench.suites import Suite
from tests import runs
from tests.fakes import CEILINGS, CPU
from tests.test_nvml import library

OWN = os.getpid()


def gpu(*ids, busy=0, **changes):
    """The library of a GPU with these processes on it."""
    answers = {
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [SimpleNamespace(pid=one) for one in ids],
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=busy, memory=0),
    }
    return library(**{**answers, **changes})


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ((), []),
        ((OWN,), []),
        ((1234567,), []),  # this process, as the host of its container counts it
        ((OWN, 71), ["the GPU is in use: 1 other process on it (71)"]),
        ((72, OWN, 71), ["the GPU is in use: 2 other processes on it (71, 72)"]),
        ((71, 72, 73), ["the GPU is in use: 2 other processes on it"]),
    ],
)
def test_others_on_the_gpu(install, ids, said):
    lib = gpu(*ids)
    install(lib)
    assert on_gpu("1234") == said
    assert lib.open == 0


def test_a_process_under_mps_counts_once(install):
    under_mps = {"nvmlDeviceGetMPSComputeRunningProcesses": lambda handle: [SimpleNamespace(pid=71)]}
    install(gpu(OWN, 71, **under_mps))
    assert on_gpu("1234") == ["the GPU is in use: 1 other process on it (71)"]


def test_a_busy_gpu(install):
    install(gpu(OWN, busy=100))
    assert on_gpu("1234") == ["the GPU was busy 100 % of the time just before the run"]
    install(gpu(OWN, busy=spoilers.BUSY_GPU_PERCENT))
    assert on_gpu("1234") == []


def test_a_part_of_a_gpu(install):
    shared = "MIG is on: the GPU's other instances share its power and clocks"
    install(gpu(OWN, nvmlDeviceGetMigMode=lambda handle: [1, 1]))
    assert on_gpu("1234") == [shared]
    install(gpu(OWN, nvmlDeviceGetVirtualizationMode=lambda handle: 2))
    assert on_gpu("1234") == ["this is a virtual GPU: others may share it, unseen"]
    install(gpu(OWN, nvmlDeviceGetVirtualizationMode=lambda handle: 1))  # passed through whole
    assert on_gpu("1234") == []


def test_a_gpu_that_says_nothing(install):
    install(library())
    assert on_gpu("1234") == []


def test_a_driver_older_than_nvidia_ml_py(install):
    """Which then raises an error of its own, that is none of NVML's."""

    class MismatchError(Exception):
        pass

    def too_new(handle):
        raise MismatchError("Unversioned function called and the pyNVML version does not match")

    lib = gpu(nvmlDeviceGetComputeRunningProcesses=too_new)
    lib.NVMLLibraryMismatchError = MismatchError
    install(lib)
    assert on_gpu("1234") == []


def test_without_nvml_that_is_said_once(install):
    install(None)
    (said,) = on_gpu("1234")
    assert said.startswith("clocks, throttling and others on the GPU are unavailable: nvidia-ml-py is not installed")


@pytest.fixture
def processors(tmp_path, monkeypatch):
    """Four processors that nobody uses; set the governor of each, and the load."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)

    def are(*governors, load=0.0):
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
        for i, governor in enumerate(governors):
            path = tmp_path / f"cpu{i}" / "cpufreq" / "scaling_governor"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{governor}\n")
        return tmp_path

    return are


def test_the_governor(processors):
    assert on_cpu(processors()) == []  # a virtual machine has none to show
    assert on_cpu(processors("performance", "performance")) == []
    (said,) = on_cpu(processors("performance", "powersave", "schedutil"))
    assert said.startswith("the CPU governor is performance, powersave, schedutil: ")


def test_the_load(processors):
    assert on_cpu(processors(load=1.0)) == []
    assert on_cpu(processors(load=1.01)) == [
        "the CPU is in use: load average 1.01 on 4 processors over the last minute"
    ]


def test_the_machine_of_the_device_is_asked(monkeypatch):
    monkeypatch.setattr(spoilers, "on_cpu", lambda: ["of the CPU"])
    monkeypatch.setattr(spoilers, "on_gpu", lambda uuid: [f"of GPU {uuid}"])
    assert spoilers.spoilers(CPU) == ("of the CPU",)
    assert spoilers.spoilers(SimpleNamespace(uuid=lambda: "1234")) == ("of GPU 1234",)


def test_a_sweep_says_and_keeps_them_and_so_does_one_that_goes_on(monkeypatch, tmp_path):
    for name in ("measure_ceilings", "measure_all_ceilings"):
        monkeypatch.setattr(session, name, lambda *_: CEILINGS)
    path, err = tmp_path / "run.jsonl", io.StringIO()

    def sweep(ctx, *said, resume):
        monkeypatch.setattr(session, "spoilers", lambda device: said)
        suite = Suite(ctx=ctx, heads=(1,), head_dim=(8,), tokens=128, kernels=("sdpa-cpu",), gated=False)
        prepared = Session.prepare(suite, "cpu", 0, Console(file=err, width=200))
        return prepared.sweep(path, "powerbench sweep", resume=resume)

    first = sweep((64,), "the machine smells of smoke", resume=False)
    assert err.getvalue().startswith("warning: the machine smells of smoke\n")
    assert first.spoilers == load(path).spoilers == ("the machine smells of smoke",)
    second = sweep((64, 128), "it burns", "the machine smells of smoke", resume=True)
    assert "warning: it burns\n" in err.getvalue()
    assert len(second.measurements) == 2
    assert second.spoilers == load(path).spoilers == ("the machine smells of smoke", "it burns")


def test_they_are_shown(tmp_path):
    bad = runs.throttled_run()
    assert render(bad, "table").splitlines()[0] == f"warning: {runs.BUSY}"
    assert f"- warning: {runs.BUSY}" in render(bad, "markdown")
    assert f'<p class="note" role="note">{runs.BUSY}</p>' in page([bad])
    path = tmp_path / "run.jsonl"
    path.write_bytes(msgspec.json.encode(bad.header) + b"\n")
    for format in ("csv", "json"):
        shown = CliRunner().invoke(cli, ["show", str(path), "--format", format])
        assert runs.BUSY not in shown.stdout
        assert shown.stderr == f"powerbench: warning: {runs.BUSY}\n"
    assert CliRunner().invoke(cli, ["show", str(path)]).output.count(runs.BUSY) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_gpu():
    from powerbench.device import pick

    pytest.importorskip("pynvml")
    found = spoilers.spoilers(pick("cuda"))
    assert not any("unavailable" in line for line in found)
