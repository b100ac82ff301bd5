"""Which contexts `sweep --refine` measures next: a function of what was measured, without a device.

All contestants of a setting are measured at a new context, so that the fastest of several is the fastest there too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from powerbench.crossover import Crossing, context_text, percent_text
from powerbench.errors import UserError
from powerbench.reports.curves import LINEAR, POWER, SOFTMAX, Group, Setting, best_of, compare, groups, pairs
from powerbench.reports.rows import Row
from powerbench.suites import Suite

WIDTH = 0.10  # of an interval over its crossing: narrower is enough
LIMIT = 8  # contexts that refining adds to a setting, in all rounds together
ROUND = 3  # of these in one round: each may show that the next are not needed
_PART = 16  # a new context is a multiple of a power of two that is at most this part of it ...
_MULTIPLE = 128  # ... and at most this: no tile of a kernel has a ragged end


@dataclass(frozen=True)
class Step:
    """Contexts to measure in one setting. `crossings`: how many are too wide; 0 where a step is only completed."""

    setting: Setting
    contexts: tuple[int, ...]
    crossings: int
    suite: Suite  # that measures them

    @property
    def text(self) -> str:
        """For the terminal."""
        why = f"{self.crossings} too wide" if self.crossings else "to be completed"
        return f"{self.setting.text}: {why}, measuring {', '.join(context_text(ctx) for ctx in self.contexts)}"


def check(suite: Suite) -> None:
    """Raise UserError where there is nothing to refine. `suite` is what `Suite.on` returned."""
    if all(len(set(part.ctx or ())) < 2 for part in suite.parts):
        raise UserError("--refine: --ctx has to name at least two contexts, to find a crossover between them")


def begun(rows: Sequence[Row], suite: Suite, kernels: Collection[str]) -> list[Step]:
    """The contexts that refining has added so far: an interrupted sweep may lack some of their cases."""
    asked = _asked(rows, suite, kernels)
    return [step for part, group in asked if (step := _as_step(group, part, _added(group, part), 0))]


def next_steps(rows: Sequence[Row], suite: Suite, kernels: Collection[str]) -> list[Step]:
    """What to measure next, a step for each setting; empty when nothing is left to narrow, or LIMIT is reached.

    `rows` are all that the run file holds, `suite` is what `Suite.on` returned, `kernels` the names selected. It goes
    by these alone, so that a sweep that was interrupted goes on as if it had not been.
    """
    steps = []
    for part, group in _asked(rows, suite, kernels):
        wide = _wide(group)
        room = min(ROUND, LIMIT - len(_added(group, part)))
        contexts = _proposals(wide, {row.ctx for row in group.rows}, room, _tokens(part))
        step = _as_step(group, part, contexts, len(wide))
        steps += [step] if step else []
    return steps


def summary(rows: Sequence[Row], suite: Suite, kernels: Collection[str]) -> str:
    """How it ended, for the terminal."""
    asked = [group for _, group in _asked(rows, suite, kernels)]
    wide = [crossing for group in asked for crossing in _wide(group)]
    if not any(between.crossings for group in asked for *_, between in pairs(group.curves)):
        return "--refine: no two contestants change places, so there is nothing to refine"
    if not wide:
        return f"--refine: every crossing is known to {percent_text(WIDTH)} or better"
    places = ", ".join(crossing.text for crossing in wide)
    return f"--refine: wider than {percent_text(WIDTH)} after {LIMIT} contexts or for want of samples: {places}"


def _asked(rows: Sequence[Row], suite: Suite, kernels: Collection[str]) -> list[tuple[Suite, Group]]:
    """The settings of the suite, each with the part of it (see `Suite.parts`) that asks for it first."""
    found, seen = [], set()
    for part in suite.parts:
        for group in _of(part, rows, kernels) if len(set(part.ctx or ())) > 1 else ():
            cases = {row.case_id for row in group.rows}
            found += [] if cases <= seen else [(part, group)]
            seen |= cases
    return found


def _of(suite: Suite, rows: Sequence[Row], kernels: Collection[str]) -> list[Group]:
    """The settings of a suite without blocks, without what another sweep or block may have left in the file."""
    low, high = min(suite.ctx or ()), max(suite.ctx or ())
    tokens = _tokens(suite) or 0

    def is_asked(row: Row) -> bool:
        batches = suite.batch or (max(1, tokens // row.ctx),)
        sizes = row.kernel in kernels and row.head_dim in suite.head_dim and row.heads in (suite.heads or ())
        sizes = sizes and row.value_dim in (suite.value_dim or (row.head_dim,))
        sizes = sizes and row.kv_heads in (suite.kv_heads or (row.heads,)) and low <= row.ctx <= high
        kind = row.dtype in (suite.dtype or ()) and row.pass_ in suite.pass_ and row.gated == suite.gated
        return sizes and kind and row.batch in batches

    return groups([row for row in rows if is_asked(row)])


def _tokens(suite: Suite) -> int | None:
    """Batch times context, where the suite keeps that and not the batch constant."""
    return None if suite.batch else suite.tokens or max(suite.ctx or ())


def _added(group: Group, suite: Suite) -> list[int]:
    return sorted({row.ctx for row in group.rows} - set(suite.ctx or ()))


def _wide(group: Group) -> list[Crossing]:
    """Crossings whose interval is too wide: those that the answers speak of first, then by width."""
    degrees = {curve.p for curve in group.curves if curve.family in POWER}
    power = [best_of(group.curves, POWER, p) for p in sorted(p for p in degrees if p is not None)]
    others = [best_of(group.curves, families) for families in (SOFTMAX, LINEAR)]
    answered = _too_wide(crossing for a in power for b in others for crossing in compare(a, b).crossings)
    rest = _too_wide(crossing for *_, between in pairs(group.curves) for crossing in between.crossings)
    return list(dict.fromkeys([*answered, *rest]))


def _too_wide(found: Iterator[Crossing]) -> list[Crossing]:
    """Without an interval (too few samples) there is nothing to judge by, and nothing that contexts would mend."""
    return sorted((c for c in found if c.width is not None and c.width > WIDTH), key=lambda c: -(c.width or 0.0))


def _proposals(wide: Sequence[Crossing], measured: Collection[int], room: int, tokens: int | None) -> list[int]:
    """At most `room` new contexts: at each crossing, or where that is measured, at the ends of its interval."""
    chosen: list[int] = []
    inside = range(min(measured) + 1, max(measured))  # rounding must not leave the range that was asked for
    for crossing in wide:
        places = (crossing.at, crossing.low or crossing.at, crossing.high or crossing.at)
        fresh = [ctx for ctx in (rounded(place, tokens) for place in places) if ctx in inside and ctx not in measured]
        near = any(abs(ctx - crossing.at) < WIDTH / 2 * crossing.at for ctx in chosen)  # helps this one as well
        if len(chosen) < room and fresh and not near:
            chosen.append(fresh[0])
    return sorted(set(chosen))


def rounded(ctx: float, tokens: int | None) -> int:
    """The nearest context that kernels take without a ragged end, or at short contexts a fine enough step.

    With constant `tokens`, one near it (within WIDTH) that some batch fills: else a call there does up to half the work
    of its neighbours.
    """
    step = min(_MULTIPLE, 1 << (max(1, int(ctx / _PART)).bit_length() - 1))
    whole = tokens / max(1, round(tokens / ctx)) if tokens else 0.0
    if abs(whole - ctx) <= WIDTH * ctx:
        return max(step, int(whole // step) * step)
    return max(step, round(ctx / step) * step)


def _as_step(group: Group, suite: Suite, contexts: Sequence[int], crossings: int) -> Step | None:
    if not contexts:
        return None
    setting = group.setting
    names = tuple(dict.fromkeys(row.kernel for row in group.rows if row.valid))
    narrow = msgspec.structs.replace(
        suite, ctx=tuple(contexts), head_dim=(setting.head_dim,), value_dim=(setting.value_dim,),
        heads=(setting.heads,), kv_heads=(setting.kv_heads,), dtype=(setting.dtype,), pass_=(setting.pass_,),
        kernels=names, tokens=_tokens(suite), batch=suite.batch and tuple(sorted({row.batch for row in group.rows})),
    )  # fmt: skip
    return Step(setting, tuple(contexts), crossings, narrow)
