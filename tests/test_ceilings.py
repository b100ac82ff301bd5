"""Ceilings: measured on this CPU at small sizes, and on a GPU that is not there; printed only from what is stored."""

from __future__ import annotations

import math
from types import SimpleNamespace

import msgspec
import pytest
import torch

from powerbench import ceilings as measuring
from powerbench.ceilings import matmul_dtypes, measure_all_ceilings, measure_ceilings
from powerbench.datasheet import DATASHEETS
from powerbench.device import Device
from powerbench.errors import UserError
from powerbench.reports.ceilings import NAMES
from powerbench.roofline import Ceiling, Ceilings
from powerbench.timing import Policy, time_enqueue
from tests.fakes import CPU

FEW = Policy(min_samples=2, min_seconds=0.0)
SMALL = Device("cpu", "a small CPU", 64 * 2**20)  # of whose memory an eighth is copied


@pytest.fixture
def small(monkeypatch):
    """Sizes that take no time."""
    monkeypatch.setattr(measuring, "MATMUL_SIZES", {"cpu": (16, 32), "cuda": (16, 32)})


class FakeCuda(Device):
    """A Device that says cuda and computes on the CPU."""

    @property
    def torch(self) -> torch.device:
        return torch.device("cpu")


@pytest.fixture
def gpu(small, monkeypatch):
    """An H200 with a tiny L2 and two multiprocessors; the L2 kernel runs under Triton's interpreter."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    properties = SimpleNamespace(L2_cache_size=2**19, multi_processor_count=2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(measuring, "L2_ROUNDS", 2)
    return FakeCuda("cuda", "NVIDIA H200", 64 * 2**20)


def keys(ceilings):
    return [ceiling.key for ceiling in ceilings.measured]


def test_on_a_cpu_by_all_threads_and_by_one(small, monkeypatch):
    threads = [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    found = measure_all_ceilings(SMALL, ("fp32", "bf16"), FEW)
    each = [("matmul", "fp32"), ("matmul", "bf16"), ("copy", None), ("read", None)]
    assert keys(found) == [(*kind, number) for number in (4, 1) for kind in each]
    assert threads[-1] == 4
    for ceiling in found.measured:
        assert len(ceiling.samples_ms) >= 2
        assert 0 < ceiling.median_rate <= ceiling.best_rate < math.inf
        assert ceiling.timer == "wall"
    assert found.measured[0].of in ("16 x 16 x 16", "32 x 32 x 32")
    assert found.measured[2].of == "8 MiB"
    assert found.measured[2].work == 2 * found.measured[3].work == 16 * 2**20


def test_the_roofline_gets_the_best_of_what_is_stored(small):
    found = measure_all_ceilings(SMALL, ("fp32",), FEW)
    best = {kind: max(c.best_rate for c in found.measured if c.kind == kind) for kind in ("matmul", "copy")}
    assert found.matmul_flops_per_s == {"fp32": best["matmul"]}
    assert found.copy_bytes_per_s == best["copy"]
    again = measure_ceilings(SMALL, ("fp32",))
    assert {kind for kind, _, _ in keys(again)} == {"matmul", "copy", "read"}  # all that the roofline uses
    both = found.or_better(again)
    assert keys(both) == keys(found)
    assert both.copy_bytes_per_s == max(c.best_rate for c in both.measured if c.kind == "copy")


def test_a_size_that_would_take_long_is_left_out(small, monkeypatch):
    monkeypatch.setattr(measuring, "LONGEST_CALL_SECONDS", 0.0)
    assert measure_ceilings(SMALL, ("fp32",)).measured[0].of == "16 x 16 x 16"


def test_everything_on_a_gpu(gpu):
    found = measure_all_ceilings(gpu, matmul_dtypes(gpu), FEW)
    kinds = [("matmul", dtype, None) for dtype in ("bf16", "fp16", "tf32", "fp32")]
    assert keys(found) == [*kinds, *((kind, None, None) for kind in list(NAMES)[1:])]
    assert set(found.matmul_flops_per_s) == {"bf16", "fp16", "tf32", "fp32"}
    l2 = next(ceiling for ceiling in found.measured if ceiling.kind == "l2_read")
    assert l2.work == 2 * 2**18  # two rounds of half of L2
    assert found.measured[-1].timer == "host-enqueue"


def test_tf32_is_switched_for_its_own_measurement_only(gpu, monkeypatch):
    seen = []
    matmul = torch.matmul

    def watched(*args, **kwargs):
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return matmul(*args, **kwargs)

    monkeypatch.setattr(torch, "matmul", watched)
    backend = torch.backends.cuda.matmul
    chosen = backend.allow_tf32
    try:
        for before in (False, True):
            backend.allow_tf32 = before
            for dtype, during in (("tf32", True), ("fp32", False)):
                seen.clear()
                measure_ceilings(gpu, (dtype,))
                assert set(seen) == {during}
                assert backend.allow_tf32 is before
    finally:
        backend.allow_tf32 = chosen


def test_older_gpus_have_neither_bf16_nor_tf32(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert matmul_dtypes(gpu) == ("fp16", "fp32")
    for device in (gpu, CPU):
        with pytest.raises(UserError, match="--dtype: tf32 is a mode of NVIDIA's tensor cores"):
            measure_all_ceilings(device, ("tf32",), FEW)


def test_without_triton_there_is_no_l2_read(gpu, monkeypatch):
    monkeypatch.setattr(measuring.importlib.util, "find_spec", lambda name: None)
    assert ("l2_read", None, None) not in keys(measure_all_ceilings(gpu, ("fp32",), FEW))


def test_the_l2_kernel_reads_all_of_its_buffer_each_round():
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    from powerbench.l2 import BLOCK, read_kernel

    source, sink = torch.rand(4 * 3 * BLOCK), torch.empty(4 * BLOCK)
    read_kernel[(4,)](source, sink, 3, 2, BLOCK=BLOCK)
    torch.testing.assert_close(sink.view(4, BLOCK), 2 * source.view(4, 3, BLOCK).sum(1))


def test_the_read_of_memory_is_the_faster_of_two(gpu, monkeypatch):
    def by_triton_alone():
        """What stands in for the Triton kernel."""

    monkeypatch.setattr(
        measuring, "_time", lambda call, device, policy: ((2.0 if call is by_triton_alone else 3.0,), "events")
    )
    monkeypatch.setattr("powerbench.memory_read.memory_read", lambda source: by_triton_alone)
    by_triton = {ceiling.kind: ceiling for ceiling in measure_ceilings(gpu, ()).measured}["read"]
    assert by_triton.of.endswith(", Triton")
    assert by_triton.samples_ms == (2.0,)
    monkeypatch.setattr(measuring.importlib.util, "find_spec", lambda name: None)
    assert {ceiling.kind: ceiling for ceiling in measure_ceilings(gpu, ()).measured}["read"].of.endswith(", torch.sum")


def test_the_memory_kernel_reads_all_of_its_buffer():
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    from powerbench.memory_read import BLOCK, read_kernel

    source, sums = torch.rand(3 * BLOCK), torch.empty(3)
    read_kernel[(3,)](source, sums, BLOCK=BLOCK)
    torch.testing.assert_close(sums, source.view(3, BLOCK).sum(1))


def test_host_time_of_launches():
    calls = []
    samples = time_enqueue(lambda: calls.append(1), torch.device("cpu"), 5, 3)
    assert len(calls) == 15
    assert len(samples.ms) == 3


def test_statistics():
    ceiling = Ceiling("copy", 10**9, (2.0, 1.0, 4.0, 3.0, 5.0), "perf_counter", "1 GB")
    assert ceiling.best_rate == pytest.approx(1e12)
    assert ceiling.median_rate == pytest.approx(1e12 / 3)
    assert ceiling.spread == pytest.approx(2 / 3)
    assert msgspec.structs.replace(ceiling, samples_ms=(1.0,)).spread is None
    with pytest.raises(ValueError, match="copy"):
        Ceilings.of([])


@pytest.mark.gpu
@pytest.mark.timing
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_gpu():
    """The order that any GPU has, and a sweep's budget."""
    import time

    from powerbench.device import pick

    device = pick("cuda")
    torch.randn(1, device=device.torch)
    start = time.perf_counter()
    found = measure_all_ceilings(device, matmul_dtypes(device))
    assert time.perf_counter() - start < 10  # 5 s and what the first call of cuBLAS and of Triton cost
    rate = {ceiling.kind: ceiling.best_rate for ceiling in found.measured}
    assert rate["l2_read"] > 1.2 * rate["read"]
    assert 0.8 < rate["read"] / rate["copy"] < 1.3
    assert 1e4 < rate["launch_device"] < 1e6
    assert 1e4 < rate["launch_host"] < 1e6
    flops = found.matmul_flops_per_s
    assert flops["fp16"] > flops["fp32"]
    if "tf32" in flops:
        assert flops["tf32"] > 1.5 * flops["fp32"]
    for ceiling in found.measured:
        promised = DATASHEETS[device.name].rate(ceiling) if device.name in DATASHEETS else None
        assert promised is None or 0.4 < ceiling.best_rate / promised < 1.05
