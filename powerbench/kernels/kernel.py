"""The seam between kernels and the rest: the record that every contestant fills in, and what it is handed.

Adding a kernel is one adapter file that builds such a record and one row in `powerbench.kernels.table` (or an entry
point in the group `powerbench.kernels` of another package). docs/adding-a-kernel.md walks through it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from powerbench.cost import Launch
from powerbench.errors import in_words
from powerbench.problem import DTYPES, Case, Params, Pass, Problem

TORCH_DTYPES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}


@dataclass(frozen=True)
class Inputs:
    """The tensors of one problem, the same for all its contestants. Shapes as in `Problem`; dy like y.

    Of a decode case q and dy have the context's last token alone: [B, 1, H, d] and [B, 1, H, e].
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    log_g: torch.Tensor | None
    dy: torch.Tensor


Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
# The parameters of a case from those that a sweep asks for, of this pass, on this device type: "cpu" or "cuda".
Resolve = Callable[[Problem, Params, Pass, str], Params]
# float64 y at the query rows [R]: [B, R, H, e]. Of the parameters p and the window count, d_tile and chunk_size do not.
Reference = Callable[[Case, Inputs, torch.Tensor], torch.Tensor]
# Phase name -> a call that repeats this launch alone, any number of times with the same work.
Phases = dict[str, Callable[[], object]]


LARGEST_CHOSEN_DEGREE = 4  # that a kernel may choose itself; tolerances grow with it, so others have to be asked for
LARGEST_PARAMETER = 2**31

T = TypeVar("T")


class RecordError(Exception):
    """A record does not answer about a case, as it has to; the message says what was asked and what came."""


def no_params(problem: Problem, params: Params, pass_: Pass, device_type: str) -> Params:
    """`Kernel.resolve` of one that has no p, d_tile or chunk."""
    return Params()


@dataclass(frozen=True)
class Support:
    """What a contestant can do and how to get it: for `powerbench list kernels`; `Kernel.unsupported` decides."""

    install: str = ""  # a command, or where it comes from
    dtypes: tuple[str, ...] = DTYPES
    head_dims: str = "any"
    passes: tuple[str, ...] = ("fwd", "bwd")  # and `decode`, where a kernel has `decoding`
    grouped: bool = True  # fewer key/value heads than query heads

    def refusal(self, case: Case) -> str | None:
        """Why the case is outside of this: its dtype, its pass, its heads; None: it is not."""
        problem, parts = case.problem, case.pass_.split("+")
        if problem.dtype not in self.dtypes:
            return f"{problem.dtype} is not supported ({', '.join(self.dtypes)})"
        if "bwd" in parts and "bwd" not in self.passes:
            return "it has no backward pass"
        if "fwd" in parts and "fwd" not in self.passes:
            return "decoding only"
        if problem.heads != problem.kv_heads and not self.grouped:
            return f"no GQA: needs as many key heads as query heads, not {problem.kv_heads} for {problem.heads}"
        return None


@dataclass(frozen=True)
class Decoder:
    """A decode case made ready: the cache or state that it holds has the context's tokens but the last.

    step: y [B, 1, H, e] of the last token, from tensors on the device. It is called again and again. A state may move
    on meanwhile; the work stays the same, or comes back to the same after `cycle` calls: their mean is one sample.
    reset: the cache or state as it was before the first step, in place, but from the inputs as they are now.
    """

    step: Callable[[], torch.Tensor]
    reset: Callable[[], None]
    cycle: int = 1


@dataclass(frozen=True)
class Decoding:
    """What a contestant does in the pass `decode`; its callables as those of `Kernel`, and in the place of them.

    `Kernel.resolve`, `unsupported` and `reference` answer for this pass too, `Kernel.support` for its dtypes and heads.
    """

    prepare: Callable[[Case, Inputs], Decoder]
    launches: Callable[[Case], tuple[Launch, ...]]  # of one step; what happens every n steps counts for 1 / n
    sequence_bytes: Callable[[Case], int]  # what is kept of one sequence: its cache or its state
    workspace_bytes: Callable[[Case], int]  # device memory beyond inputs and output, what is kept included


@dataclass(frozen=True)
class Kernel:
    """One contestant. `name` is its row (power-triton), `family` the group that `--kernels` may select (power).

    Every callable is total: it may be asked about any case on any machine, also where its package is missing.
    """

    name: str
    family: str
    summary: str
    takes: frozenset[str]  # which of p, d_tile, chunk_size a sweep may vary
    gated: bool  # does it apply log_g? A softmax kernel does not, and its row says so
    version: Callable[[], str | None]  # of the package that provides it; None: not installed
    resolve: Resolve  # fills in what is None
    unsupported: Callable[[Case, str], str | None]  # why the case cannot run on this device type; None: it can
    prepare: Callable[[Case], Forward]  # (q, k, v, log_g) -> y, differentiable where the pass asks for gradients
    reference: Reference  # the function that it claims to compute
    launches: Callable[[Case], tuple[Launch, ...]]  # the ledger of one call
    workspace_bytes: Callable[[Case], int]  # device memory beyond inputs, output and gradients
    # Each launch by itself, on the buffers of one real call that `phases` makes; names are those of `launches`, all or
    # some of them. None: the kernel cannot be taken apart.
    phases: Callable[[Case, Inputs], Phases] | None = None
    support: Support = Support()
    tuning_seconds: float = 0.0  # what its compiling and tuning may take, of each case, beyond what every case is given
    decoding: Decoding | None = None  # None: it does not decode
    provider: str | None = field(default=None, compare=False)  # the package of an entry point; None: powerbench

    def settle(self, problem: Problem, wanted: Params, pass_: Pass, device_type: str) -> tuple[Params, str | None]:
        """The parameters of a case, and None; or those that were wanted, and why `resolve` cannot be taken at its word.

        A degree other than that asked for is none: the tolerance of the gate grows with it.
        """
        try:
            params = self.ask("resolve", lambda: self.resolve(problem, wanted, pass_, device_type))
        except RecordError as error:
            return wanted, str(error)
        flaw = _params_flaw(params, wanted)
        return (wanted, flaw) if flaw else (params, None)

    def refusal(self, case: Case, device_type: str) -> str | None:
        """Why the case cannot run on this device type; None: it can."""
        _, flaw = self.settle(case.problem, case.params, case.pass_, device_type)
        if flaw:
            return flaw
        if case.pass_ == "decode" and self.decoding is None:
            return f"{self.name} does not decode"
        try:
            reason = self.ask("unsupported", lambda: self.unsupported(case, device_type))
        except RecordError as error:
            return str(error)
        return None if reason is None else str(reason)

    def installed(self) -> str | None:
        """The version of its package; None: not installed."""
        try:
            version = self.ask("version", self.version)
        except RecordError as error:
            return str(error)
        return None if version is None else str(version)

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """What one of its callables answers. Raises RecordError for whatever it raises: they are to be total."""
        try:
            return call()
        except BaseException as error:
            if type(error) is KeyboardInterrupt:  # the user's
                raise
            raise RecordError(f"{what} of {self.name} raises {in_words(error)}") from error

    def claims(self, pass_: Pass) -> str | None:
        """What powerbench takes another package's word for, in this pass: `reference and ledger of mine 1.0`.

        None: the kernel is powerbench's own, or it names powerbench's reference and ledger.
        """
        if self.provider is None:
            return None
        decoding = self.decoding if pass_ == "decode" else None
        ledger = (decoding.launches, decoding.sequence_bytes) if decoding else (self.launches,)
        theirs = [] if _is_ours(self.reference) else ["reference"]
        theirs += [] if all(map(_is_ours, ledger)) else ["ledger"]
        return f"{' and '.join(theirs)} of {self.provider}" if theirs else None

    @property
    def passes(self) -> tuple[str, ...]:
        """What it can do; `fwd` and `bwd` make `fwd+bwd`."""
        return self.support.passes + (("decode",) if self.decoding else ())


def _params_flaw(params: object, wanted: Params) -> str | None:
    if not isinstance(params, Params):
        return f"resolve answers with a {type(params).__name__}, not with Params"
    for name in ("p", "d_tile", "chunk_size", "window"):
        value = getattr(params, name)
        if value is not None and (type(value) is not int or not 1 <= value <= LARGEST_PARAMETER):
            return f"resolve answers {name} = {str(value)[:40]}; allowed are 1 to {LARGEST_PARAMETER}"
    if wanted.p is not None and params.p != wanted.p:
        return f"resolve answers p = {params.p} where p = {wanted.p} was asked for"
    if wanted.p is None and params.degree > LARGEST_CHOSEN_DEGREE:
        return f"resolve chooses p = {params.p}; a kernel may choose up to {LARGEST_CHOSEN_DEGREE}"
    return None


def _is_ours(function: object) -> bool:
    """Whether this is a function of powerbench, found where it says that it is."""
    module = getattr(function, "__module__", None)
    if not isinstance(module, str) or not module.startswith("powerbench."):
        return False
    return getattr(sys.modules.get(module), getattr(function, "__name__", ""), None) is function
