"""What a device can do at best, measured on random data: docs/measuring.md says what each ceiling is."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch

from powerbench.device import Device
from powerbench.errors import UserError
from powerbench.kernels.kernel import TORCH_DTYPES
from powerbench.roofline import Ceiling, Ceilings
from powerbench.timing import Policy, time_call, time_enqueue

# A few shapes, the best counts: libraries differ in which size they like. Ascending: see `_matmul`.
MATMUL_SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (4096, 8192)}
# Far larger than the caches. The flush before a sample leaves an L2 of lines that have yet to be written back (on an
# H200 8.5 us of a read): half a per cent of 8 GiB, but 2 % of 2 GiB, as much as a row may exceed the roof. On an H200 a
# copy of 8 GiB reached 4.32 TB/s, where copies of 2 GiB had reached 4.25.
STREAM_BYTES = {"cpu": 256 * 1024**2, "cuda": 8 * 1024**3}
LONGEST_CALL_SECONDS = 0.1  # no larger shape is tried that must take longer: a CPU may do fp16 at 1 GFLOP/s
QUICK = Policy(min_samples=5, min_seconds=0.15, max_samples=100)  # a shape, within a sweep
THOROUGH = Policy(min_samples=10, min_seconds=0.5, max_samples=200)  # a shape, by `powerbench ceilings`
L2_ROUNDS = 200  # the first finds a cold L2, and is half a percent of them
LAUNCHES = 200  # in a row, for their host time
TF32_CAPABILITY = (8, 0)  # of the first GPUs that have bf16 and tf32; older ones ignore the switch


def measure_ceilings(device: Device, dtypes: Iterable[str]) -> Ceilings:
    """What the roofline uses, and no more: the matmul rate of each dtype, copy and read bandwidth. Within seconds."""
    return Ceilings.of([*(_matmul(device, dtype, QUICK) for dtype in dtypes), *_stream(device, QUICK)])


def measure_all_ceilings(device: Device, dtypes: Iterable[str], policy: Policy = QUICK) -> Ceilings:
    """Everything: matmul of each dtype, copy and read; on a CPU by all threads and by one; on a GPU L2 and launches.

    `dtypes` may name tf32 too. Raises UserError where the device has no such matmul.
    """
    dtypes = list(dict.fromkeys(dtypes))
    for dtype in dtypes:
        if dtype == "tf32" and "tf32" not in matmul_dtypes(device):
            raise UserError(f"--dtype: tf32 is a mode of NVIDIA's tensor cores from Ampere on; {device.name} has none")
    found: list[Ceiling] = []
    for threads in _thread_counts(device):
        with _threads(threads):
            found += [_matmul(device, dtype, policy) for dtype in dtypes]
            found += _stream(device, policy)
    if device.type == "cuda":
        found += [*_l2_read(device, policy), *_launches(device, policy)]
    return Ceilings.of(found)


def matmul_dtypes(device: Device) -> tuple[str, ...]:
    """The dtypes whose matmul is a ceiling of this device: what a sweep measures whatever its own dtypes are."""
    if device.type == "cpu":
        return ("bf16", "fp16", "fp32")
    modern = torch.cuda.get_device_capability(device.torch) >= TF32_CAPABILITY
    return ("bf16", "fp16", "tf32", "fp32") if modern else ("fp16", "fp32")


def _thread_counts(device: Device) -> list[int | None]:
    """All threads, then one; a GPU has no such choice."""
    return list(dict.fromkeys((torch.get_num_threads(), 1))) if device.type == "cpu" else [None]


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if number:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """fp32 matmuls in tf32 or not, whatever the process has chosen, which comes back afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = allowed
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _time(call: Callable[[], object], device: Device, policy: Policy) -> tuple[tuple[float, ...], str]:
    call()  # the warm-up
    samples = time_call(call, device.torch, policy)
    return samples.ms, samples.timer


def _cpu_threads(device: Device) -> int | None:
    return torch.get_num_threads() if device.type == "cpu" else None


def _matmul(device: Device, dtype: str, policy: Policy) -> Ceiling:
    """Of the shape with the fastest sample. The largest are left out where they would take too long."""
    found: list[Ceiling] = []
    with _tf32(dtype == "tf32"):
        for size in MATMUL_SIZES[device.type]:
            samples = _time(_product(device, dtype, size), device, policy)
            of = f"{size} x {size} x {size}"
            found.append(Ceiling("matmul", 2 * size**3, *samples, of, dtype, _cpu_threads(device)))
            if 8 * min(found[-1].samples_ms) / 1e3 > LONGEST_CALL_SECONDS:
                break
    return max(found, key=lambda ceiling: ceiling.best_rate)


def _product(device: Device, dtype: str, size: int) -> Callable[[], object]:
    in_memory = TORCH_DTYPES["fp32" if dtype == "tf32" else dtype]
    a, b = (torch.randn(size, size, device=device.torch).to(in_memory) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.matmul(a, b, out=out)


def _stream(device: Device, policy: Policy) -> tuple[Ceiling, Ceiling]:
    """Copy and read of a buffer far larger than the caches: bytes moved from and to memory; of two reads the faster."""
    policy = replace(policy, min_seconds=2 * policy.min_seconds)  # of one size, where a matmul has several
    size = min(STREAM_BYTES[device.type], device.memory_bytes // 8)
    # a megabyte of random numbers again and again: drawing each would take a CPU longer than all the samples
    source = torch.rand(2**18, device=device.torch).repeat(max(1, size // 2**20))
    target, total = torch.empty_like(source), torch.empty((), device=device.torch)
    moved, of, threads = source.nbytes, f"{source.nbytes // 2**20} MiB", _cpu_threads(device)
    copied = _time(lambda: target.copy_(source), device, policy)
    reads: dict[str, Callable[[], object]] = {"torch.sum": lambda: torch.sum(source, 0, out=total)}
    if device.type == "cuda" and importlib.util.find_spec("triton"):
        from powerbench.memory_read import memory_read  # noqa: PLC0415  triton is an extra

        reads["Triton"] = memory_read(source)
    read = [
        Ceiling("read", moved, *_time(call, device, policy), f"{of}, {name}", threads=threads)
        for name, call in reads.items()
    ]
    return (
        Ceiling("copy", 2 * moved, *copied, of, threads=threads),
        max(read, key=lambda ceiling: ceiling.best_rate),
    )


def _l2_read(device: Device, policy: Policy) -> list[Ceiling]:
    """Read bandwidth of half of L2, hot; nothing where there is no triton to say it in."""
    properties = torch.cuda.get_device_properties(device.torch)
    if not properties.L2_cache_size or importlib.util.find_spec("triton") is None:
        return []
    from powerbench.l2 import l2_read  # noqa: PLC0415  triton is an extra

    multiprocessors = properties.multi_processor_count
    launch, size = l2_read(properties.L2_cache_size, multiprocessors, L2_ROUNDS, device.torch)
    of = f"{size / 2**20:.1f} MiB, {L2_ROUNDS} rounds a launch"
    return [Ceiling("l2_read", L2_ROUNDS * size, *_time(launch, device, policy), of)]


def _launches(device: Device, policy: Policy) -> list[Ceiling]:
    """The time of a kernel that does next to nothing: on the device, and what it costs the host to enqueue one."""
    x = torch.rand(1, device=device.torch)
    of = "x.neg_() of one element"
    alone = Ceiling("launch_device", 1, *_time(x.neg_, device, policy), of)
    row = time_enqueue(x.neg_, device.torch, LAUNCHES, policy.max_samples)
    return [alone, Ceiling("launch_host", LAUNCHES, row.ms, row.timer, f"{of}, {LAUNCHES} in a row")]
