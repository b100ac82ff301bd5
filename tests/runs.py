"""Synthetic runs for the tests: made of formulas, so that what they must show is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from powerbench.cost import Cost, Launch
from powerbench.nvml import Facts
from powerbench.problem import Case, DType, Params, Pass, Problem
from powerbench.results.model import SCHEMA_VERSION, Environment, Header, Measurement, Phase, Round, Run, Status
from powerbench.roofline import Ceiling, Ceilings

POWERS_OF_TWO = (1024, 2048, 4096, 8192, 16384)


FACTS = Facts(
    nvml="13.580.1", uuid="GPU-0badcafe", driver="580.159.04", cuda_driver="13.0", persistence_mode="on", ecc="on",
    mig="off", application_sm_mhz=1500, default_application_sm_mhz=1980, max_sm_mhz=1980, power_limit_w=700.0,
)  # fmt: skip


# What the GPU was doing over the twenty samples of a case.
COOL = Round(20, 1980.0, 520.5, 51.0, ())
CAPPED = Round(20, 1755.0, 699.0, 62.0, ("sw power cap",))
HOT = Round(20, 1200.0, 610.0, 91.0, ("sw power cap", "hw thermal slowdown", "hw slowdown"))


def gpu_ceilings(peak: float = 7.9e14, bandwidth: float = 4.1e12) -> Ceilings:
    """One of each kind, whose fastest sample gives `peak` FLOP/s of bf16 and `bandwidth` bytes/s."""

    def samples(work: float, rate: float) -> tuple[float, ...]:
        return tuple(work / rate * 1e3 * slower for slower in (1.01, 1.0, 1.03, 1.02, 1.04))

    flops, copied = 2 * 8192**3, 2 * 2**31
    events, shape = "events-cold", "8192 x 8192 x 8192"
    matmul = [
        Ceiling("matmul", flops, samples(flops, rate), events, shape, dtype)
        for dtype, rate in (("bf16", peak), ("fp16", peak), ("tf32", peak / 2), ("fp32", peak / 2))
    ]
    rest = [
        Ceiling("copy", copied, samples(copied, bandwidth), events, "2048 MiB"),
        Ceiling("read", 2**31, samples(2**31, bandwidth), events, "2048 MiB"),
        Ceiling("l2_read", 5 * 10**9, samples(5e9, 2 * bandwidth), events, "25.0 MiB, 200 rounds a launch"),
        Ceiling("launch_device", 1, samples(1, 4e5), events, "x.neg_() of one element"),
        Ceiling("launch_host", 200, samples(200, 3e5), "host-enqueue", "x.neg_() of one element, 200 in a row"),
    ]
    return Ceilings.of([*matmul, *rest])


def header(device: str = "Intel Xeon (8 cores)", peak: float = 4e11, bandwidth: float = 2e10) -> Header:
    """A header of a CPU run, or of anything else with other ceilings."""
    gpu = device.startswith("NVIDIA")
    environment = Environment(
        device=device,
        device_type="cuda" if gpu else "cpu",
        cores=132 if gpu else 8,
        memory_bytes=141 * 2**30 if gpu else 32 * 2**30,
        os="Linux 6.1.0",
        python="3.12.4",
        cpu="Intel Xeon Platinum 8488C",
        driver="570.86.15" if gpu else None,
        packages={"torch": "2.13.0", **({"triton": "3.9.0", "flash-attn-4": "4.0.0"} if gpu else {})},
        commit="0123456789abcdef",
        powerbench="0.1.0",
        cuda="13.0" if gpu else None,
        gpu=FACTS if gpu else None,
    )
    return Header(
        schema=SCHEMA_VERSION,
        command="powerbench sweep --p 2 --ctx 1k..16k --dtype fp32 -o out/cpu.jsonl",
        suite="custom",
        seed=0,
        started="2026-01-02T03:04:05Z",
        environment=environment,
        ceilings=gpu_ceilings(peak, bandwidth) if gpu else Ceilings({"fp32": peak / 2, "bf16": peak}, bandwidth),
    )


def problem(ctx: int, *, tokens: int | None = None, dtype: DType = "fp32", gated: bool = False) -> Problem:
    """Eight heads of 64; batch 1, or what fills `tokens`."""
    batch = 1 if tokens is None else max(1, tokens // ctx)
    return Problem(batch, ctx, 8, 8, 64, 64, dtype, gated)


def measurement(
    kernel: str,
    ctx: int,
    ms: float | None,
    *,
    params: Params | None = None,
    pass_: Pass = "fwd",
    status: Status = "ok",
    message: str | None = None,
    noise: float = 0.01,
    n: int = 7,
    flops: float | None = None,
    moved: float | None = None,
    tokens: int | None = None,
    dtype: DType = "fp32",
    config: dict[str, str] | None = None,
    timer_reason: str | None = None,
    wall_ms: tuple[float, ...] = (),
    rounds: tuple[Round, ...] = (),
    retaken: tuple[Round, ...] = (),
) -> Measurement:
    """One case of `ms` milliseconds with `n` noisy samples; without `ms`, a row of another status."""
    case = Case(problem(ctx, tokens=tokens, dtype=dtype), kernel, params or Params(), pass_)
    if ms is None:
        return Measurement(case=case, status=status, message=message)
    samples = ms * (1 + noise * np.random.default_rng(len(case.case_id)).standard_normal(n))
    useful = int(flops if flops is not None else 1e6 * ctx)
    launch = Launch("whole", Cost(useful, int(1.25 * useful), int(moved if moved is not None else 4096 * ctx)))
    return Measurement(
        case=case,
        status=status,
        samples_ms=tuple(float(sample) for sample in np.abs(samples)),
        timer="perf_counter",
        launches=(launch,),
        error=3.1e-6,
        tolerance=1e-4,
        peak_memory_bytes=2**20 * 96,
        config=config or {},
        message=message,
        stop="precise",
        order="interleaved",
        timer_reason=timer_reason,
        wall_ms=wall_ms,
        rounds=rounds,
        retaken=retaken,
    )


def run(measurements: Iterable[Measurement], of: Header | None = None, warnings: Sequence[str] = ()) -> Run:
    """A run as `load` would give it."""
    return Run("out/synthetic.jsonl", of or header(), tuple(measurements), tuple(warnings))


def cpu_run(contexts: Sequence[int] = POWERS_OF_TWO) -> Run:
    """power-torch linear in the context, sdpa-cpu quadratic: they cross at 5120 tokens; linear-torch always wins."""
    found = []
    for ctx in contexts:
        found += [
            measurement(
                "sdpa-cpu", ctx, 400 * (ctx / 5120) ** 2, flops=2.0 * 8 * ctx**2 * 64, moved=4 * 8 * 64 * 4 * ctx
            ),
            measurement("power-torch", ctx, 400 * ctx / 5120, params=Params(2, 16, 256), flops=2.7e6 * ctx),
            measurement("linear-torch", ctx, 20 * ctx / 5120, params=Params(1, None, 128), flops=1.3e5 * ctx),
            measurement(
                "power-triton", ctx, None, params=Params(2), status="unsupported", message="power-triton needs a GPU"
            ),
        ]
    return run(found)


def _gpu_case(kernel: str, ctx: int, pass_: Pass, tokens: int, params: Params, *, tiles: float = 1.0) -> Measurement:
    """One H200-like bf16 case; quadratic for softmax, linear for the rest; degree 3 runs out of memory at the end."""
    work = {"fwd": 1.0, "bwd": 2.5, "fwd+bwd": 3.5}[pass_]
    if kernel == "flash-2":
        why = "flash-attn is not installed (pip install flash-attn)"
        return measurement(
            kernel, ctx, None, pass_=pass_, tokens=tokens, dtype="bf16", status="unsupported", message=why
        )
    if params.p == 3 and ctx >= 65536:
        why = "CUDA out of memory: tried to allocate 96.00 GiB"
        return measurement(
            kernel, ctx, None, pass_=pass_, tokens=tokens, dtype="bf16", params=params, status="oom", message=why
        )
    if kernel == "fla-chunk" and pass_ != "fwd":
        why = "output is wrong: relative error 0.31, allowed 0.02 <b>see docs</b>"
        return measurement(kernel, ctx, None, pass_=pass_, tokens=tokens, dtype="bf16", status="wrong", message=why)
    softmax = kernel.startswith(("sdpa", "flash"))
    degree = {1: 0.15, 2: 1.0, 3: 8.0}.get(params.p or 1, 1.0)
    flops = work * tokens * 8 * (2.0 * ctx * 64 if softmax else 2.6e5 * degree)
    speed = {"sdpa-flash": 3.5e14, "sdpa-cudnn": 4.9e14, "flash-4": 6.2e14, "power-triton": 3.1e14}.get(kernel, 1.2e14)
    ms = (flops / (speed * (0.9 if ctx < 8192 else 1)) * 1e3 + 0.02) * tiles
    config = {"BLOCK_M": "128", "num_warps": "8"} if kernel.endswith("triton") else {}
    return measurement(
        kernel, ctx, ms, params=params, pass_=pass_, tokens=tokens, dtype="bf16", flops=flops, n=20, config=config,
        moved=tokens * 8 * 64 * 2 * 4, noise=0.004, wall_ms=(ms * 1.01,), rounds=(COOL,) if softmax else (CAPPED,),
        timer_reason="RuntimeError: cannot synchronize while capturing" if kernel == "sdpa-math" else None,
    )  # fmt: skip


def gpu_run(passes: Sequence[Pass] = ("fwd", "fwd+bwd"), tokens: int = 131072, doublings: int = 7) -> Run:
    """An H200-like run: many kernels, d_tile x chunk swept, rows of several statuses, one impossible time."""
    found = []
    for pass_ in passes:
        for ctx in (1024 << i for i in range(doublings + 1)):
            for kernel in ("sdpa-flash", "sdpa-cudnn", "flash-4", "flash-2"):
                found.append(_gpu_case(kernel, ctx, pass_, tokens, Params()))
            found.append(_gpu_case("linear-triton", ctx, pass_, tokens, Params(1, None, 256)))
            found.append(_gpu_case("fla-chunk", ctx, pass_, tokens, Params()))
            for p in (2, 3):
                for d_tile in (8, 16, 32):
                    for chunk in (256, 512, 1024, 2048):
                        price = 1 + 0.12 * abs(np.log2(d_tile / 16)) + 0.06 * abs(np.log2(chunk / 1024))
                        found.append(
                            _gpu_case("power-triton", ctx, pass_, tokens, Params(p, d_tile, chunk), tiles=float(price))
                        )
    found.append(_gpu_case("sdpa-math", 4096, passes[0], tokens, Params(), tiles=0.01))
    return run(found, header("NVIDIA H200", peak=7.9e14, bandwidth=4.1e12))


# name, useful FLOPs a token, bytes a token, and what part of the whole call's time it takes alone
FORWARD_PHASES = (
    ("update_state", 2e6, 2000.0, 0.30),
    ("scan", 0.0, 5000.0, 0.15),
    ("attention", 1e6, 6000.0, 0.25),
    ("query_state", 2e6, 5000.0, 0.40),
)


def with_phases(whole: Measurement, *, backward: bool = False, scale: float = 1.0, hostile: str = "") -> Measurement:
    """The case with a ledger of several launches and a time for each; together 110 % of the whole call's."""
    parts = list(FORWARD_PHASES)
    if backward:
        again = [(f"{name}_backward", 2 * flops, 3 * moved, share * 0.7) for name, flops, moved, share in parts]
        parts = [(name, flops, moved, share * 0.3) for name, flops, moved, share in parts] + again[::-1]
    tokens = whole.case.problem.tokens * scale
    launches = tuple(
        Launch(name + hostile, Cost(int(flops * tokens), int(1.25 * flops * tokens), int(moved * tokens)))
        for name, flops, moved, _ in parts
    )
    phases = tuple(Phase(name + hostile, tuple(share * ms for ms in whole.samples_ms)) for name, _, _, share in parts)
    return msgspec.structs.replace(whole, launches=launches, phases=phases)


def phases_run() -> Run:
    """power-triton and linear-triton taken apart, forward and with backward; one phase failed, one is impossible."""
    found = []
    for pass_ in ("fwd", "fwd+bwd"):
        for ctx in (4096, 16384, 65536):
            base = {"pass_": pass_, "tokens": 65536, "dtype": "bf16"}
            both = pass_ != "fwd"
            for chunk, ms in ((512, 2.6), (1024, 2.0)):
                power = measurement("power-triton", ctx, ms * (4 if both else 1), params=Params(2, 16, chunk), **base)
                found.append(with_phases(power, backward=both))
            linear = measurement("linear-triton", ctx, 0.4 * (4 if both else 1), params=Params(1, 64, 256), **base)
            found.append(with_phases(linear, backward=both, scale=0.1))
            found.append(measurement("sdpa-cudnn", ctx, 0.15 * ctx / 1024 * (4 if both else 1), **base))
    at_64k = next(i for i, m in enumerate(found) if m.case.problem.seqlen == 65536 and m.case.params.chunk_size == 1024)
    phases = list(found[at_64k].phases)
    phases[1] = Phase("scan", message="OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 GiB")
    phases[2] = Phase("attention", (0.04,) * 7)
    found[at_64k] = msgspec.structs.replace(found[at_64k], phases=tuple(phases))
    return run(found, header("NVIDIA H200", peak=7.9e14, bandwidth=4.1e12))


def slower_run(base: Run) -> Run:
    """`base` again with one case of power-triton half as slow again, and all others the same."""
    again = []
    for m in base.measurements:
        slow = m.case_id.startswith("power-triton/p2-dt16-c1024/fwd/T2048-")
        samples = tuple(1.5 * ms for ms in m.samples_ms) if slow else m.samples_ms
        again.append(msgspec.structs.replace(m, samples_ms=samples))
    return msgspec.structs.replace(base, path="out/slower.jsonl", measurements=tuple(again))


def large_run(count: int) -> Run:
    """`count` cases, 721 a head dimension: how large is the page, and how long does it take?"""
    base = gpu_run(("fwd", "bwd", "fwd+bwd"))
    found = []
    for head_dim in range(16, 1024, 16):
        for m in base.measurements:
            problem_ = msgspec.structs.replace(m.case.problem, head_dim=head_dim, value_dim=head_dim)
            found.append(msgspec.structs.replace(m, case=msgspec.structs.replace(m.case, problem=problem_)))
        if len(found) >= count:
            break
    return run(found[:count], base.header)


BUSY = "the GPU is in use: 2 other processes on it (71, 72)"


def throttled_run() -> Run:
    """A shared GPU that grew hot: one case was taken in its slowdown to the end, another was taken again."""
    of = header("NVIDIA H200", peak=7.9e14, bandwidth=4.1e12)
    of = msgspec.structs.replace(of, environment=msgspec.structs.replace(of.environment, warnings=(BUSY,)))
    found = []
    for ctx in (1024, 4096):
        base = {"dtype": "bf16", "n": 20, "flops": 1e9}
        found.append(measurement("sdpa-cudnn", ctx, ctx / 1e3, rounds=(CAPPED,), retaken=(HOT, HOT), **base))
        rounds, retaken = ((HOT,), (HOT,) * 5) if ctx == 4096 else ((COOL,), ())
        params = Params(2, 16, 256)
        found.append(measurement("power-triton", ctx, 2.0, params=params, rounds=rounds, retaken=retaken, **base))
    return run(found, of)


HOSTILE = '</script><img src=x onerror="alert(1)">|`$x_{$\x1b[31m[red]&amp;é'


def hostile_run() -> Run:
    """Every text of a run that may come from outside, at its worst, on rows with and without numbers."""
    environment = msgspec.structs.replace(
        header().environment, device=HOSTILE, os=HOSTILE, cpu=HOSTILE, packages={HOSTILE: HOSTILE}, cuda=HOSTILE,
        gpu=Facts(nvml=HOSTILE, uuid=HOSTILE, driver=HOSTILE, ecc=HOSTILE, mig=HOSTILE, persistence_mode=HOSTILE),
        warnings=(HOSTILE,),
    )  # fmt: skip
    ceilings = header().ceilings
    measured = (Ceiling("matmul", 10**9, (1.0,), HOSTILE, HOSTILE, HOSTILE), Ceiling("copy", 9, (1.0,), "", HOSTILE))
    ceilings = msgspec.structs.replace(ceilings, measured=measured)
    worst = msgspec.structs.replace(header(), environment=environment, command=HOSTILE, suite=HOSTILE, started=HOSTILE)
    worst = msgspec.structs.replace(worst, ceilings=ceilings)
    found = [
        measurement(
            f"sdpa-{HOSTILE}",
            ctx,
            ctx * 2.0,
            flops=1e6,
            config={HOSTILE: HOSTILE},
            message=HOSTILE,
            rounds=(Round(7, 1e3, 1.0, 1.0, (HOSTILE, "hw slowdown")),),
        )
        for ctx in (1024, 2048)
    ]
    for ctx in (1024, 2048):
        for chunk in (128, 256):
            params = Params(2, 16, chunk)
            found.append(measurement(f"power-{HOSTILE}", ctx, 1.0 * chunk, flops=1e6, params=params))
    found[-1] = with_phases(found[-1], scale=1e-3, hostile=HOSTILE)
    found[-1] = msgspec.structs.replace(found[-1], phases=(*found[-1].phases[1:], Phase(HOSTILE, message=HOSTILE)))
    found.append(measurement(HOSTILE, 1024, None, status="failed", message=HOSTILE))
    return run(found, worst, [HOSTILE])


def few_samples_run() -> Run:
    """One point, of one sample."""
    return run([measurement("power-torch", 1024, 5.0, params=Params(2), n=1, flops=1e6)])


def impossible_run() -> Run:
    """One point, above the roof."""
    return run([measurement("power-torch", 1024, 0.001, flops=1e9, params=Params(2))])


def no_ledger_run() -> Run:
    """A case without launches, and one of a dtype without a ceiling."""
    bare = msgspec.structs.replace(measurement("sdpa-cpu", 1024, 5.0), launches=())
    return run([bare, measurement("power-torch", 1024, 4.0, dtype="fp64", params=Params(2))])


def all_failed_run() -> Run:
    """No case has a number."""
    why = "no CUDA device was found"
    return run(
        measurement(kernel, ctx, None, params=Params(p), status="failed", message=why)
        for ctx in (1024, 2048)
        for kernel, p in (("power-triton", 2), ("sdpa-flash", None))
    )


def of_shape(measured: Measurement, **shape: int) -> Measurement:
    """The same measurement of a problem of another shape."""
    other = msgspec.structs.replace(measured.case.problem, **shape)
    return msgspec.structs.replace(measured, case=msgspec.structs.replace(measured.case, problem=other))


def heads_run(kv_heads: Sequence[int] = (8, 2, 1)) -> Run:
    """As the suite heads: d = 64 by key/value heads, and one d = 32; power-torch is faster but at one key/value head.

    Two choices of d_tile, of which 16 is faster; sdpa-cpu is out of memory at d = 32.
    """
    found = []
    for shape, ms in [*(({"kv_heads": heads}, 2.0) for heads in kv_heads), ({"head_dim": 32, "value_dim": 32}, 1.0)]:
        for d_tile in (8, 16):
            params, ours = Params(2, d_tile, 256), ms * 16 / d_tile
            found.append(of_shape(measurement("power-torch", 4096, ours, params=params, flops=1e6), **shape))
        if "head_dim" in shape:
            other = measurement("sdpa-cpu", 4096, None, status="oom", message="64 GiB wanted")
        else:
            other = measurement("sdpa-cpu", 4096, shape["kv_heads"] + 0.5, flops=1e6)
        found.append(of_shape(other, **shape))
    return run(found)


RUNS: dict[str, Callable[[], Run]] = {
    "cpu": cpu_run,
    "gpu": gpu_run,
    "one context": lambda: cpu_run((16384,)),
    "one point": few_samples_run,
    "empty": lambda: run([]),
    "all failed": all_failed_run,
    "impossible": impossible_run,
    "no ledger": no_ledger_run,
    "hostile": hostile_run,
    "with phases": phases_run,
    "throttled": throttled_run,
    "heads": heads_run,
}
