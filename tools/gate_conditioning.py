"""How much of the error of dlog_g in bfloat16 is conditioning, on a CPU: docs/kernel-notes.md, "Gate gradients".

    python -m tools.gate_conditioning

Two cases, A and B of the notes; relative errors of dq, dk, dv and dlog_g against float64 at the same unrounded inputs
for the first row, at the rounded ones for the others:

    inputs       float64 throughout, of q, k, v, dy rounded to bfloat16
    materialised all pairs at once as FlashAttention takes them: operands, P and dS in bfloat16, products summed in
                 float32, y rounded before delta = dy . y. dlog_g of three kinds: from dq and dk as they are returned
                 (rounded), from those sums before rounding, and from the rows and columns of P dP before dS is rounded
    Hopper       what the kernels of powerbench for Hopper round: weights before they are divided, ds for dq as a
                 product of two factors in bfloat16 and for dk in one piece; dlog_g from dq and dk before rounding
    power-torch  the PyTorch backend in bfloat16; under TRITON_INTERPRET=1 also the portable Triton kernels, in float16
                 and with products in float32, as the interpreter has no others
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from powerbench.kernels.power.op import power_attention

SEEDS = 3


class Setting(NamedTuple):
    """A case: not normalised where p is odd."""

    name: str
    p: int
    d: int
    e: int
    chunk: int
    tokens: int
    resets: bool  # of -20 at 1 % of tokens among slow gates; else logsigmoid(randn)


SETTINGS = (
    Setting("A", p=3, d=32, e=128, chunk=256, tokens=500, resets=False),
    Setting("B", p=2, d=128, e=64, chunk=128, tokens=500, resets=True),
)


def inputs(setting: Setting, seed: int) -> list[Tensor]:
    """q, k [T, d], v [T, e], log_g [T] and dy [T, e] of one head, float64."""
    random = torch.Generator().manual_seed(seed)
    T = setting.tokens
    q, k, v, dy = (
        torch.randn(T, n, generator=random, dtype=torch.float64) for n in (setting.d, setting.d, setting.e, setting.e)
    )
    log_g = torch.randn(T, generator=random, dtype=torch.float64)
    log_g = logsigmoid(log_g + 6.9) if setting.resets else logsigmoid(log_g)
    if setting.resets:
        log_g = log_g.masked_fill(torch.rand(T, generator=random) < 0.01, -20.0)
    return [q, k, v, log_g.float().double(), dy]


def rounded(x: Tensor) -> Tensor:
    """The nearest bfloat16, in x's dtype."""
    return x.bfloat16().to(x.dtype)


def row_sums(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of the rows, float64 [T]."""
    return (x.double() * y.double()).sum(1)


def gradients(
    setting: Setting, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor, dy: Tensor, *, low: bool
) -> dict[str, list[Tensor]]:
    """dq, dk, dv and dlog_g by each way to sum it, all pairs materialised. low: rounded as FlashAttention does."""
    p, wide = setting.p, torch.float32 if low else torch.float64
    near = rounded if low else (lambda x: x)
    scale = setting.d**-0.5
    G = log_g.double().cumsum(0)
    decay = (G[:, None] - G).tril().exp().tril().to(wide)
    q, k, v, dy = (x.to(wide) for x in (q, k, v, dy))
    s = scale * q @ k.T
    A = s**p * decay
    den = A.sum(1, keepdim=True) if p % 2 == 0 else torch.ones(len(q), 1, dtype=wide)
    P = A / den
    y = near(near(P) @ v)
    delta = (dy * y).sum(1, keepdim=True) if p % 2 == 0 else 0.0
    dP = dy @ v.T - delta
    dS = scale * p * s ** (p - 1) * decay / den * dP
    dq, dk, dv = near(dS) @ k, near(dS).T @ q, near(P).T @ dy
    X = (P * dP).double()
    rows = {
        "from dq, dk as returned": [row_sums(near(dq), q) / p, row_sums(near(dk), k) / p],
        "from dq, dk before rounding": [row_sums(dq, q) / p, row_sums(dk, k) / p],
        "from rows and columns of P dP": [X.sum(1), X.sum(0)],
    }  # fmt: skip
    return {
        name: [near(dq), near(dk), near(dv), (of_q - of_k).flip(0).cumsum(0).flip(0)]
        for name, (of_q, of_k) in rows.items()
    }


def hopper(setting: Setting, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor, dy: Tensor) -> list[Tensor]:
    """dq, dk, dv and dlog_g with the roundings of the Hopper kernels, in one chunk."""
    p = setting.p
    G = log_g.double().cumsum(0)
    decay = (G[:, None] - G).tril().exp().tril().float()
    q, k, v, dy = (x.float() for x in (q, k, v, dy))
    s = setting.d**-0.5 * q @ k.T
    A = s**p * decay
    even = p % 2 == 0
    den = A.sum(1, keepdim=True) if even else torch.ones(len(q), 1)
    y = rounded(rounded(A) @ v / den)
    y[0] = v[0] if even else y[0]  # row 0 of a sequence comes out exactly
    dP = dy @ v.T - ((dy * y).sum(1, keepdim=True) if even else 0.0)
    factor = p * setting.d**-0.5
    dq = factor / den * (rounded(rounded(dP) * rounded(s ** (p - 1) * decay)) @ k)
    dk = factor * rounded(dP * s ** (p - 1) * decay / den).T @ q
    dv = rounded(A / den).T @ dy
    dG = (row_sums(dq, q) - row_sums(dk, k)) / p
    return [rounded(dq), rounded(dk), rounded(dv), dG.flip(0).cumsum(0).flip(0)]


def by_operator(setting: Setting, tensors: list[Tensor], backend: str, dtype: torch.dtype) -> list[Tensor]:
    """The same by `power_attention`."""
    q, k, v, log_g, dy = tensors
    leaves = [x[None, :, None].to(dtype).requires_grad_() for x in (q, k, v)]
    leaves.append(log_g[None, :, None].float().requires_grad_())
    y = power_attention(*leaves, p=setting.p, chunk_size=setting.chunk, backend=backend)
    found = torch.autograd.grad(y, leaves, dy[None, :, None].to(dtype))
    return [x[0, :, 0] for x in found]


def rows(setting: Setting, seed: int) -> Iterator[tuple[str, list[float]]]:
    """Each row of the table: its name, and the errors of dq, dk, dv, dlog_g."""
    exact = inputs(setting, seed)
    near = [rounded(x) if i != 3 else x for i, x in enumerate(exact)]
    key = "from rows and columns of P dP"
    true = gradients(setting, *exact, low=False)[key]
    want = gradients(setting, *near, low=False)[key]
    yield "inputs rounded, float64", errors(want, true)
    for name, found in gradients(setting, *near, low=True).items():
        yield f"materialised, {name}", errors(found, want)
    yield "roundings of the Hopper kernels", errors(hopper(setting, *near), want)
    yield "power-torch, bfloat16", errors(by_operator(setting, near, "torch", torch.bfloat16), want)
    if os.environ.get("TRITON_INTERPRET") == "1":
        yield "power-triton, float16", errors(by_operator(setting, near, "triton", torch.float16), want)


def errors(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """Relative errors in the Frobenius norm."""
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]


def main() -> None:
    torch.set_num_threads(1)
    print("| case | | dq | dk | dv | dlog_g |\n|---|---|---|---|---|---|")
    for setting in SETTINGS:
        found = [list(rows(setting, seed)) for seed in range(SEEDS)]
        for same in zip(*found, strict=True):
            mean = torch.tensor([figures for _, figures in same]).mean(0)
            print(f"| {setting.name} | {same[0][0]} | " + " | ".join(f"{x:.1e}" for x in mean) + " |")


if __name__ == "__main__":
    main()
