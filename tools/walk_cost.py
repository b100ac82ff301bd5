"""A step on a plain bfloat16 state by its two kernels: `python -m tools.walk_cost`, on a GPU that has TMA.

At p = 2, d = e = 64, 8 heads: first that both give the same y and state, and the walk the same bits twice; then times
by CUDA graph, in turns, after a flush of the L2 by writing, beside the bandwidth of a copy of 1 GiB. Outcome:
docs/kernel-notes.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from powerbench import PowerState, power_attention_step
from powerbench.kernels.power import decode_tiling, triton_decode
from powerbench.timing import FLUSH_BYTES, SPIN_CYCLES_PER_MS

BATCHES = (1, 16, 64, 256)
HEADS, DIM = 8, 64
SAMPLES = 41
DEVICE = torch.device("cuda", 0)


def made(batch: int) -> tuple[list[Tensor], PowerState]:
    """A token's q, k, v, log_g, and the state of 32 tokens before it."""
    torch.manual_seed(batch)
    rows = torch.from_numpy(decode_tiling.packed_indices(DIM, 2, 8)).to(DEVICE)
    s = torch.empty(batch, HEADS, len(rows), DIM, device=DEVICE, dtype=torch.bfloat16)
    z = torch.empty(batch, HEADS, len(rows), device=DEVICE)
    for b in range(batch):
        k = torch.randn(HEADS, 32, DIM, device=DEVICE)
        phi = k[..., rows & 127] * k[..., rows >> 7 & 127]
        s[b], z[b] = phi.mT @ torch.randn(HEADS, 32, DIM, device=DEVICE), phi.sum(1)
    token = [torch.randn(batch, 1, HEADS, DIM, device=DEVICE).bfloat16() for _ in range(3)]
    return [*token, torch.full((batch, 1, HEADS), -1e-3, device=DEVICE)], PowerState(s, z)


def step(token: list[Tensor], state: PowerState) -> Tensor:
    """y; the state is moved on."""
    q, k, v, log_g = token
    return power_attention_step(q, k, v, log_g, state, p=2, d_tile=8, in_place=True, backend="triton")[0]


def error(a: Tensor, b: Tensor) -> float:
    """Relative."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def check(token: list[Tensor], start: PowerState, use: Callable[[str], None]) -> None:
    """Three steps by each kernel. Raises AssertionError."""
    found: dict[str, list[Tensor]] = {}
    for which in ("step_kernel", "walk", "walk"):
        use(which)
        state = PowerState(start.s.clone(), start.z.clone())
        ys = torch.stack([step(token, state).clone() for _ in range(3)])
        now = [ys, state.s, state.z]
        assert which not in found or all(torch.equal(a, b) for a, b in zip(now, found[which], strict=True)), "bits"
        found[which] = now
    errors = [error(a, b) for a, b in zip(found["walk"], found["step_kernel"], strict=True)]
    assert all(miss < most for miss, most in zip(errors, (1e-2, 1e-2, 1e-4), strict=True)), errors


def median_us(call: Callable[[], object], flush: Tensor) -> float:
    """Of cold samples, the first of which warms up."""
    times = []
    for _ in range(SAMPLES + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(SPIN_CYCLES_PER_MS // 4)  # the host is ahead meanwhile
        flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times[1:])


def copied(flush: Tensor) -> float:
    """Bytes read and written in a microsecond by a copy."""
    source, target = torch.rand(2, 1 << 28, device=DEVICE)
    return 2 * source.nbytes / median_us(lambda: target.copy_(source), flush)


def main() -> None:
    """A line for each batch and kernel, each kernel twice."""
    number = triton_decode.walking_processors(DEVICE)
    processors = {"walk": number, "step_kernel": 0}

    def use(which: str) -> None:
        triton_decode.walking_processors = lambda _: processors[which]  # type: ignore[assignment]

    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=DEVICE)
    bytes_per_us = copied(flush)
    print(f"copy {bytes_per_us / 1e6:.2f} TB/s, {number} multiprocessors", flush=True)
    for batch in BATCHES:
        token, state = made(batch)
        check(token, state, use)
        moved = 2 * (state.s.nbytes + state.z.nbytes)
        for which in ("step_kernel", "walk") * 2:
            use(which)
            step(token, state)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step(token, state)
            us = median_us(graph.replay, flush)
            print(f"batch {batch} {which:12s} {us:7.1f} us  {moved / us / bytes_per_us:.2f} of the copy", flush=True)


if __name__ == "__main__":
    main()
