"""What is measured: the shared problem, a kernel's own parameters, and their combination, the case.

Everything here is frozen, has its unit or shape in the name, and imports neither torch nor a GPU, so that stored runs
can be read anywhere.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from powerbench.bounds import Batch, Degree, Name, Tokens, Width

DType = Literal["bf16", "fp16", "fp32", "fp64"]
Pass = Literal["fwd", "bwd", "fwd+bwd", "decode"]

DTYPES: tuple[str, ...] = get_args(DType)
PASSES: tuple[str, ...] = get_args(Pass)
ITEMSIZE: dict[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}


class Problem(msgspec.Struct, frozen=True, gc=False):
    """One causal self-attention problem: what every contestant shares.

    q is [batch, seqlen, heads, head_dim], k is [batch, seqlen, kv_heads, head_dim], v is
    [batch, seqlen, kv_heads, value_dim]; with `gated`, log_g is [batch, seqlen, kv_heads] in float32. A contestant
    that has no gates (softmax attention) computes the same problem without them, and its row says so.
    """

    batch: Batch
    seqlen: Tokens
    heads: Width
    kv_heads: Width
    head_dim: Width
    value_dim: Width
    dtype: DType
    gated: bool

    @property
    def tokens(self) -> int:
        """Tokens one forward call processes: batch * seqlen."""
        return self.batch * self.seqlen

    @property
    def itemsize(self) -> int:
        """Bytes of one element of q, k, v and y."""
        return ITEMSIZE[self.dtype]

    @property
    def q_bytes(self) -> int:
        """Bytes of q (and of dq)."""
        return self.tokens * self.heads * self.head_dim * self.itemsize

    @property
    def k_bytes(self) -> int:
        """Bytes of k (and of dk)."""
        return self.tokens * self.kv_heads * self.head_dim * self.itemsize

    @property
    def v_bytes(self) -> int:
        """Bytes of v (and of dv)."""
        return self.tokens * self.kv_heads * self.value_dim * self.itemsize

    @property
    def y_bytes(self) -> int:
        """Bytes of the output y (and of dy)."""
        return self.tokens * self.heads * self.value_dim * self.itemsize

    @property
    def gate_bytes(self) -> int:
        """Bytes of log_g in float32 (and of its gradient); 0 when the problem has no gates."""
        return self.tokens * self.kv_heads * 4 if self.gated else 0

    @property
    def label(self) -> str:
        """Short, stable and unique: part of a case's id."""
        gates = "gated" if self.gated else "ungated"
        return (
            f"T{self.seqlen}-B{self.batch}-H{self.heads}-Hk{self.kv_heads}"
            f"-d{self.head_dim}-e{self.value_dim}-{self.dtype}-{gates}"
        )


class Params(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A kernel's own parameters. None: this kernel has no such parameter, or (before `resolve`) it chooses itself.

    `window`: keys that a query of sliding-window attention sees, its own included. Beside it, `p` is the degree of the
    power attention whose state the window's keys and values equal in size, and no degree of the kernel itself.
    """

    p: Degree | None = None
    d_tile: Width | None = None
    chunk_size: Tokens | None = None
    window: Tokens | None = None

    @property
    def degree(self) -> int:
        """The power that scores are raised to; 1 where they are not."""
        return (self.p or 1) if self.window is None else 1

    @property
    def label(self) -> str:
        """Short and stable, for example `p2-dt16-c512`; `-` when there are none."""
        parts = [
            f"{short}{value}"
            for short, value in (("p", self.p), ("dt", self.d_tile), ("c", self.chunk_size), ("w", self.window))
            if value is not None
        ]
        return "-".join(parts) or "-"


class Case(msgspec.Struct, frozen=True, gc=False, rename={"pass_": "pass"}):
    """One row of a run: a kernel with its resolved parameters, on a problem, in one pass.

    The pass `decode` is one token of each sequence, the last of its context (position seqlen - 1): all before it is in
    a cache or a state, which is made outside the clock. Then chunk_size is how many tokens a state takes in at once.
    """

    problem: Problem
    kernel: Name
    params: Params
    pass_: Pass

    @property
    def tokens(self) -> int:
        """Tokens that one call gives an output for."""
        return self.problem.batch if self.pass_ == "decode" else self.problem.tokens

    @property
    def case_id(self) -> str:
        """The same for the same case in every run: the key of resume and of comparison."""
        return f"{self.kernel}/{self.params.label}/{self.pass_}/{self.problem.label}"
