"""The inputs that all contestants of a problem share: made, watched, and changed between timed calls.

`Guard` tells whether a contestant has written to them. `Variation` changes v and dy in such a way that it is known what
becomes of the results: attention is linear in v, each column of each sequence and key/value head by itself, and its
gradients are linear in dy, each head by itself. So no second reference is needed, and a result kept from an earlier
call, by whatever key, is a wrong one.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from random import Random

import torch

from powerbench.kernels.kernel import TORCH_DTYPES, Inputs
from powerbench.problem import Case, Problem

DRAWN_ELEMENTS = 2**30  # of an operand at once, in float32, unless one sequence has more
SLOW_GATES = 6.9  # log_g = logsigmoid(randn + 6.9): half-life about 700 tokens, so that a wrong state is seen
SPOTS = 1024  # elements of each tensor that are looked at after each turn
SCALES = (1.0, 2.0, 4.0, 8.0)  # of dy, with either sign: exact in every dtype, and no larger than float16 takes
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def make_inputs(problem: Problem, device: torch.device, seed: int, *, decoding: bool = False) -> Inputs:
    """Random tensors for a problem, the same for the same seed and device type. Never zeros: they time too well."""
    generator = torch.Generator(device).manual_seed(seed)
    B, T, H, Hk = problem.batch, problem.seqlen, problem.heads, problem.kv_heads

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    def operand(tokens: int, heads: int, width: int) -> torch.Tensor:
        whole = torch.empty(B, tokens, heads, width, dtype=TORCH_DTYPES[problem.dtype], device=device)
        for part in whole.split(max(1, DRAWN_ELEMENTS // whole[0].numel())):
            part.copy_(normal(*part.shape))
        return whole

    queries = 1 if decoding else T
    return Inputs(
        q=operand(queries, H, problem.head_dim),
        k=operand(T, Hk, problem.head_dim),
        v=operand(T, Hk, problem.value_dim),
        log_g=torch.nn.functional.logsigmoid(normal(B, T, Hk) + SLOW_GATES) if problem.gated else None,
        dy=operand(queries, H, problem.value_dim),
    )


def digest(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Sums of the bits of x [B, T, ...]: over each token's, and over all tokens; exact, and cheap beside a call."""
    x = x.detach()
    wide = x.is_contiguous() and x.shape[-1] * x.itemsize % 8 == 0
    words = x.view(torch.int64 if wide else WORDS[x.itemsize])
    return words.flatten(2).sum(2, dtype=torch.int64), words.sum(1, dtype=torch.int64)


class Guard:
    """Whether somebody else than powerbench has written to the inputs.

    A decoding step may append its token to them, as to a cache, and then writes what stands there: `decoding` inputs
    are judged by their content alone.
    """

    def __init__(self, inputs: Inputs, *, decoding: bool = False) -> None:
        self._counts = not decoding
        self._tensors = {name: tensor for name, tensor in vars(inputs).items() if tensor is not None}
        self._digests = {name: digest(tensor) for name, tensor in self._tensors.items()}
        generator = torch.Generator().manual_seed(secrets.randbits(63))
        self._spots, self._places = {}, {}
        for name, tensor in self._tensors.items():
            spots = torch.randint(tensor.numel(), (SPOTS,), generator=generator).to(tensor.device)
            self._spots[name] = spots, tensor.flatten()[spots]
            self._places[name] = _place(tensor)
        self._versions = self._versions_now()
        self._written: dict[str, None] = {}

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """What is written inside is powerbench's."""
        self._note()
        try:
            yield
        finally:
            self._versions = self._versions_now()

    def quick(self) -> tuple[str, ...]:
        """The tensors that were written to, by torch's count of versions, or that differ at some random places."""
        self._note()
        for name, (spots, values) in self._spots.items():
            tensor = self._tensors[name]
            if _place(tensor) != self._places[name] or not torch.equal(tensor.detach().flatten()[spots], values):
                self._written[name] = None
        return tuple(self._written)

    def thorough(self) -> tuple[str, ...]:
        """The tensors whose content differs anywhere."""
        now = {name: digest(tensor) for name, tensor in self._tensors.items()}
        return tuple(name for name, was in self._digests.items() if not all(map(torch.equal, now[name], was)))

    def _note(self) -> None:
        if not self._counts:
            return
        now = self._versions_now()
        self._written |= {name: None for name, version in now.items() if version != self._versions[name]}

    def _versions_now(self) -> dict[str, int]:
        return {name: tensor._version for name, tensor in self._tensors.items()}


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr()


class Variation:
    """Changes of v and dy, drawn by `seed`, for one case. As a context it ends with the inputs as they were, exactly.

    Forward, columns of v change their sign; of a training step those of dy do, too, and dy is scaled by its heads, as
    it is in a backward pass alone, whose graph holds v as it was.
    """

    def __init__(self, case: Case, inputs: Inputs, guard: Guard, seed: int) -> None:
        problem = case.problem
        self._inputs, self._guard, self._random = inputs, guard, Random(seed)
        self._signs, self._scales = case.pass_ != "bwd", "bwd" in case.pass_
        self._group = problem.heads // problem.kv_heads
        self._columns = torch.ones(problem.batch, 1, problem.kv_heads, problem.value_dim)
        self._scale = torch.ones(problem.batch, 1, problem.kv_heads, 1)

    def __enter__(self) -> Variation:
        return self

    def __exit__(self, *_: object) -> None:
        with self._guard.own():
            if self._signs:
                self._inputs.v.mul_(self._as(self._inputs.v, self._columns))
            if self._scales:
                self._inputs.dy.div_(self._as(self._inputs.dy, self._heads(self._columns * self._scale)))

    def once(self) -> None:
        """Change one head of one sequence: little work, in memory that the call reads anyway."""
        b = self._random.randrange(self._columns.shape[0])
        h = self._random.randrange(self._columns.shape[2])
        factor = torch.ones(self._columns.shape[3])
        with self._guard.own():
            if self._signs:
                factor = self._draw_signs()
                self._columns[b, 0, h] *= factor
                self._inputs.v[b, :, h].mul_(self._as(self._inputs.v, factor))
            if self._scales:
                factor = factor * self._draw_scale(b, h)
                heads = slice(h * self._group, (h + 1) * self._group)
                self._inputs.dy[b, :, heads].mul_(self._as(self._inputs.dy, factor))

    def everywhere(self) -> None:
        """Change all heads of all sequences; of an instance that has changed nothing yet."""
        for b in range(self._columns.shape[0]):
            for h in range(self._columns.shape[2]):
                if self._signs:
                    self._columns[b, 0, h] = self._draw_signs()
                if self._scales:
                    self._draw_scale(b, h)
        with self._guard.own():
            if self._signs:
                self._inputs.v.mul_(self._as(self._inputs.v, self._columns))
            if self._scales:
                self._inputs.dy.mul_(self._as(self._inputs.dy, self._heads(self._columns * self._scale)))

    @contextlib.contextmanager
    def only(self, rows: torch.Tensor) -> Iterator[None]:
        """dy is zero but in these rows."""
        dy = self._inputs.dy
        whole = dy.clone()
        with self._guard.own():
            dy.zero_().index_copy_(1, rows, whole[:, rows])
        try:
            yield
        finally:
            with self._guard.own():
                dy.copy_(whole)

    def factors(self) -> tuple[torch.Tensor, ...]:
        """By what the results differ from those of the inputs as they were: of y, or of dq, dk, dv and dlog_g."""
        columns, scale = (x.to(self._inputs.v.device, torch.float64) for x in (self._columns, self._scale))
        if not self._scales:
            return (self._heads(columns),)
        return self._heads(scale), scale, scale * columns, scale[..., 0]

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(self._group, 2)

    def _as(self, tensor: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return factor.to(tensor.device, tensor.dtype)

    def _draw_signs(self) -> torch.Tensor:
        """At least one of them changes."""
        signs = [self._random.choice((-1.0, 1.0)) for _ in range(self._columns.shape[3])]
        signs[self._random.randrange(len(signs))] = -1.0
        return torch.tensor(signs)

    def _draw_scale(self, b: int, h: int) -> float:
        """Another than before; the quotient of both."""
        was = float(self._scale[b, 0, h, 0])
        now = was
        while now == was:
            now = self._random.choice((-1.0, 1.0)) * self._random.choice(SCALES)
        self._scale[b, 0, h, 0] = now
        return now / was
