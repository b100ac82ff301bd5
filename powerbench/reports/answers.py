"""The run in sentences: what stands on top of the page and under the terminal's table.

Only trusted times are compared, and only at contexts that both sides measured. What was tried and has no time is said;
of what was not tried there is nothing to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from powerbench.crossover import Crossover, context_text, contexts_text, percent_text, ratio_text
from powerbench.reports.curves import LINEAR, POWER, SOFTMAX, Curve, Group, best_of, compare, groups, setting_names
from powerbench.reports.findings import (
    choice_sentence,
    degree_sentence,
    fastest_sentence,
    phase_sentence,
    time_sentence,
)
from powerbench.reports.predictions import LABEL, prediction, prediction_text
from powerbench.reports.rows import Row, rows
from powerbench.results.model import Run

_NO_CROSSOVER = "A crossover needs more contexts."  # of all comparisons just before it that have one alone


class Answer(msgspec.Struct, frozen=True):
    """What the run says about power attention at one degree in one setting."""

    setting: str  # for example `Forward, fp32, d = 64`
    p: int | None
    sentences: tuple[str, ...]
    predictions: tuple[str, ...] = ()  # of the cost model, beyond what was measured; not part of `text`

    @property
    def text(self) -> str:
        """One paragraph of plain text."""
        return f"{self.setting}: {' '.join(self.sentences)}"


def answers(run: Run) -> list[Answer]:
    """One answer for each setting (pass, dtype, head dimension ...) and degree; empty for a run without rows."""
    found = groups(rows(run))
    names = setting_names(found)
    return [answer for group, name in zip(found, names, strict=True) for answer in _group_answers(group, name)]


def gaps(group: Group) -> str | None:
    """Which contestants lack a number in this setting, and in a word why; None when all have all of theirs."""
    why: dict[tuple[str, str], dict[int, None]] = defaultdict(dict)
    for row in group.rows:
        if not row.valid:
            word = "above the roof" if row.status == "ok" else row.status
            why[_label(row), word][row.ctx] = None
    if not why:
        return None
    everywhere = {row.ctx for row in group.rows}
    parts = [
        f"{label} ({word})"
        if set(contexts) == everywhere
        else f"{label} at {contexts_text(contexts, everywhere)} ({word})"
        for (label, word), contexts in why.items()
    ]
    return f"Without a number to trust: {'; '.join(parts)}."


def _group_answers(group: Group, name: str) -> list[Answer]:
    degrees = sorted({row.p for row in group.rows if row.family in POWER and row.p is not None})
    if not degrees:
        said = (*fastest_sentence(group), *_roof_sentence(group, {})) or (_nothing("any contestant", group.rows),)
        return [Answer(name, None, said)]
    result = []
    for p in degrees:
        power = best_of(group.curves, POWER, p)
        if not power:
            tried = [row for row in group.rows if row.family in POWER and row.p == p]
            result.append(Answer(name, p, (_nothing(f"power attention (p = {p})", tried),)))
            continue
        sentences = [
            *comparisons(p, power, group),
            *degree_sentence(p, power, group),
            *choice_sentence(power, group),
            *phase_sentence(power),
            *_sentence_where(
                "Host bound (a user waits over 10 % longer than these device times say)",
                power,
                group,
                lambda row: row.host_bound,
            ),
            *_sentence_where(
                "Measured while the GPU throttled, so slower than it is in good health",
                power,
                group,
                lambda row: row.throttled,
            ),
            *(_roof_sentence(group, power) if any(curve.family not in POWER for curve in group.curves) else []),
            *_missing(group, p),
        ]
        predicted = [_predicted(power, group, families) for families in (SOFTMAX, LINEAR)]
        said = tuple(capital(sentence) for sentence in sentences)
        result.append(Answer(name, p, said, tuple(sentence for sentence in predicted if sentence)))
    return result


def comparisons(p: int, power: dict[int, Row], group: Group) -> list[str]:
    """Degree p, by its fastest rows, against softmax and linear attention, those of them that were tried.

    Without any its time alone.
    """
    subject = f"power attention (p = {p}, {_kernels(power)})"
    rivals = {"softmax attention": SOFTMAX, "linear attention": LINEAR}
    tried = [what for what, families in rivals.items() if any(row.family in families for row in group.rows)]
    if not tried:
        return [time_sentence(subject, power)]
    subjects = [subject, *("it" for _ in tried[1:])]
    said = [_comparison(who, power, group, rivals[what], what) for who, what in zip(subjects, tried, strict=True)]
    alone = [between is not None and len(between.contexts) == 1 for _, between in said]
    sentences = []
    for (sentence, _), now, after in zip(said, alone, [*alone[1:], False], strict=True):
        sentences += [sentence, *([_NO_CROSSOVER] if now and not after else [])]
    return sentences


def _comparison(
    subject: str, power: dict[int, Row], group: Group, families: tuple[str, ...], what: str
) -> tuple[str, Crossover | None]:
    """How power attention stands against the fastest of some families, of which there is a row, at each context."""
    tried = [row for row in group.rows if row.family in families]
    best = best_of(group.curves, families)
    if not best:
        return f"{subject} could not be compared with {what}. {_nothing(what, tried)}", None
    between = compare(power, best)
    other = f"{what} ({_kernels({ctx: best[ctx] for ctx in between.contexts} or best)})"
    if between.speedup is None:
        return f"{subject} was never measured at the same context as {other}.", between
    return _verdict(subject, other, between), between


def _verdict(subject: str, other: str, between: Crossover) -> str:
    """The crossover as a sentence, with the speedup at the largest shared context."""
    assert between.speedup is not None
    at = f"at {context_text(between.contexts[-1])}"
    end = "as fast within the noise" if between.leads[-1] == 0 else ratio_text(between.speedup)
    match between.verdict:
        case "unknown":
            than = "as" if end.startswith("as fast") else "than"
            what = f"{subject} is {end} {than} {other} {at}."
        case "level":
            what = f"{subject} is as fast as {other} within the noise at every measured context ({between.range_text})."
        case "crosses" | "always":
            what = f"{subject} beats {other} {between.sentence}; {at} it is {end}."
        case "several":
            what = f"{subject} changes places with {other} {between.sentence}; {at} it is {end}."
        case "never":
            what = f"{subject} does not beat {other} {between.sentence}; {at} it is {end}."
    return what


def _predicted(power: dict[int, Row], group: Group, families: tuple[str, ...]) -> str | None:
    """Where the contestants that are best at the largest shared context are predicted to change places beyond it."""
    best = best_of(group.curves, families)
    last = max(power.keys() & best.keys(), default=None)
    if last is None:
        return None
    named = {_label(row): row.median_ms or 0.0 for row in (power[last], best[last])}
    ahead, behind = sorted((c for c in group.curves if c.label in named), key=lambda curve: named[curve.label])
    found = prediction(ahead, behind)
    return f"{LABEL}: {behind.label} passes {ahead.label} {prediction_text(found)}." if found else None


def _sentence_where(what: str, power: dict[int, Row], group: Group, holds: Callable[[Row], bool]) -> list[str]:
    """What has to be known of the times compared, and of which of them; nothing where it holds for none."""
    measured = {row.ctx for row in group.rows}
    where: dict[str, list[int]] = defaultdict(list)
    for side in (power, best_of(group.curves, SOFTMAX), best_of(group.curves, LINEAR)):
        for ctx, row in side.items():
            if holds(row) and ctx not in where[_label(row)]:
                where[_label(row)].append(ctx)
    named = [f"{label} at {contexts_text(contexts, measured)}" for label, contexts in where.items() if contexts]
    return [f"{what}: {'; '.join(named)}."] if named else []


def _roof_sentence(group: Group, power: dict[int, Row]) -> list[str]:
    """Who comes nearest to the roof at the largest context with a roof, and how near power attention comes."""
    placed = [row for curve in group.curves for row in curve.points.values() if row.roof_fraction is not None]
    if not placed:
        return []
    ctx = max(row.ctx for row in placed)
    nearest = max((row for row in placed if row.ctx == ctx), key=lambda row: row.roof_fraction or 0.0)
    share = percent_text(nearest.roof_fraction or 0.0)
    sentence = f"At {context_text(ctx)} {_label(nearest)} comes nearest to this machine's roof, at {share}"
    ours = power.get(ctx)
    if ours is not None and ours.roof_fraction is not None and _label(ours) != _label(nearest):
        sentence += f"; {_label(ours)} reaches {percent_text(ours.roof_fraction)}"
    return [f"{sentence}."]


def _missing(group: Group, p: int) -> list[str]:
    """Contexts at which a side has no time to trust, though it has some elsewhere and was tried here; or nobody has."""
    sides = [("power attention", POWER, p), ("softmax attention", SOFTMAX, None), ("linear attention", LINEAR, None)]
    lost = {row.ctx for row in group.rows} - {row.ctx for row in group.rows if row.valid}
    said = [_without(group.rows, lost, "any contestant", group)] if lost else []
    for what, families, degree in sides:
        have = best_of(group.curves, families, degree)
        tried = [row for row in group.rows if row.family in families and degree in (None, row.p)]
        missing = {row.ctx for row in tried} - have.keys() - lost
        if have and missing:
            said.append(_without(tried, missing, what, group))
    return said


def _without(tried: Sequence[Row], contexts: set[int], what: str, group: Group) -> str:
    where = contexts_text(contexts, {row.ctx for row in group.rows})
    return _nothing(f"{what} at {where}", [row for row in tried if row.ctx in contexts])


def _nothing(what: str, tried: Sequence[Row]) -> str:
    """Why there is no number, in the words of the rows: of three contestants, those with the same words at once."""
    first = {(_label(row), row.status): row for row in reversed(tried)}
    by_reason: dict[str, list[str]] = defaultdict(list)
    for (label, _), row in list(reversed(first.items()))[:3]:
        by_reason[_why(row)].append(label)
    shown = "; ".join(f"{', '.join(labels)}: {reason}" for reason, labels in by_reason.items())
    return f"No time to trust for {what}: {shown}{f'; and {len(first) - 3} more' if len(first) > 3 else ''}."


def _why(row: Row) -> str:
    reason = (row.reason or "").rstrip(".")
    return reason if row.status == "ok" else f"{row.status}, {reason}"


def _kernels(points: dict[int, Row]) -> str:
    """The kernels that are best at some context: `sdpa-cpu`, or `the best of sdpa-flash, flash-4`."""
    names = list(dict.fromkeys(_opponent(row) for row in points.values()))
    return names[0] if len(names) == 1 else f"the best of {', '.join(names)}"


def _opponent(row: Row) -> str:
    return row.kernel if row.family in POWER else _label(row)


def _label(row: Row) -> str:
    return Curve(row.kernel, row.p, row.family, {}).label


def capital(sentence: str) -> str:
    """A sentence that begins with a capital letter."""
    return sentence[:1].upper() + sentence[1:]
