"""The run in sentences: what stands on top of the page and under the terminal's table.

Only trusted times are compared, and only at contexts that both sides measured. What is missing is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from powerbench.crossover import Crossover, context_text, percent_text, ratio_text
from powerbench.reports.curves import LINEAR, POWER, SOFTMAX, Curve, Group, best_of, compare, groups, pairs
from powerbench.reports.rows import Row, rows
from powerbench.results.model import Run


class Answer(msgspec.Struct, frozen=True):
    """What the run says about power attention at one degree in one setting."""

    setting: str  # for example `Forward, fp32, d = 64`
    p: int | None
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """One paragraph of plain text."""
        return f"{self.setting}: {' '.join(self.sentences)}"


class Pair(msgspec.Struct, frozen=True):
    """Two contestants in one setting, the one that is faster at their largest shared context first."""

    setting: str
    faster: str
    slower: str
    crossover: Crossover


def answers(run: Run) -> list[Answer]:
    """One answer for each setting (pass, dtype, head dimension ...) and degree; empty for a run without rows."""
    found = groups(rows(run))
    names = setting_names(found)
    return [answer for group, name in zip(found, names, strict=True) for answer in _group_answers(group, name)]


def crossover_table(run: Run) -> list[Pair]:
    """Every two curves of every setting, once."""
    found = groups(rows(run))
    return [
        Pair(name, first.label, second.label, between)
        for group, name in zip(found, setting_names(found), strict=True)
        for first, second, between in pairs(group.curves)
    ]


def setting_names(found: Sequence[Group]) -> list[str]:
    """A name for each group, no longer than it takes to tell them apart."""
    texts = [group.setting.text for group in found]
    return [
        f"{text} ({group.setting.details})" if texts.count(text) > 1 else text
        for group, text in zip(found, texts, strict=True)
    ]


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
        f"{label} ({word})" if set(contexts) == everywhere else f"{label} at {_contexts(contexts)} ({word})"
        for (label, word), contexts in why.items()
    ]
    return f"Without a number to trust: {'; '.join(parts)}."


def _group_answers(group: Group, name: str) -> list[Answer]:
    degrees = sorted({row.p for row in group.rows if row.family in POWER and row.p is not None})
    if not degrees:
        return [Answer(name, None, ("No power kernel is in this run.", *_roof_sentence(group, {})))]
    result = []
    for p in degrees:
        power = best_of(group.curves, POWER, p)
        if not power:
            tried = [row for row in group.rows if row.family in POWER and row.p == p]
            result.append(Answer(name, p, (_nothing(f"power attention (p = {p})", tried),)))
            continue
        subject = f"power attention (p = {p}, {_kernels(power)})"
        sentences = [
            _comparison(subject, power, group, SOFTMAX, "softmax attention"),
            _comparison("it", power, group, LINEAR, "linear attention"),
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
            *_roof_sentence(group, power),
            *_partial(group, POWER, "power attention", p),
            *_partial(group, SOFTMAX, "softmax attention"),
            *_partial(group, LINEAR, "linear attention"),
        ]
        result.append(Answer(name, p, tuple(_capital(sentence) for sentence in sentences)))
    return result


def _comparison(subject: str, power: dict[int, Row], group: Group, families: tuple[str, ...], what: str) -> str:
    """How power attention stands against the fastest of some families at each context."""
    tried = [row for row in group.rows if row.family in families]
    best = best_of(group.curves, families)
    if not tried:
        return f"{subject} was not compared with {what}: none is in this run."
    if not best:
        return f"{subject} could not be compared with {what}. {_nothing(what, tried)}"
    between = compare(power, best)
    other = f"{what} ({_kernels({ctx: best[ctx] for ctx in between.contexts} or best)})"
    if between.speedup is None:
        return f"{subject} was never measured at the same context as {other}."
    last = between.contexts[-1]
    return _verdict(subject, other, between, _at_end(power[last], best[last], between.speedup))


def _verdict(subject: str, other: str, between: Crossover, end: str) -> str:
    """The crossover as a sentence; `end` is the speedup in words at the largest shared context."""
    level = end.startswith("as fast")
    at = f"at {context_text(between.contexts[-1])}"
    match between.verdict:
        case "unknown":
            what = f"{subject} is {end} {'as' if level else 'than'} {other} {at}; a crossover needs more contexts."
        case "crosses" if level and between.faster_from is not None:
            what = f"{subject} draws level with {other} {at}, the largest context that both measured."
        case "crosses":
            where = f"{between.text} tokens" if between.faster_from is None else f"{between.text[:-3]} tokens on"
            what = f"{subject} beats {other} {where}; {at} it is {end}."
        case "always":
            what = f"{subject} beats {other} {between.text}; {at} it is {end}."
        case "several":
            places = ", ".join(context_text(x) for x in between.at)
            what = f"{subject} changes places with {other} at {places} tokens; {at} it is {end}."
        case "never":
            what = f"{subject} does not beat {other} within {between.range_text}; {at} it is {end}."
    return what


def _at_end(power: Row, other: Row, speedup: float) -> str:
    """The speedup in words, unless the two intervals overlap."""
    ours, theirs = power.interval_ms, other.interval_ms
    if ours and theirs and ours[0] <= theirs[1] and theirs[0] <= ours[1]:
        return "as fast within the noise"
    return ratio_text(speedup)


def _sentence_where(what: str, power: dict[int, Row], group: Group, holds: Callable[[Row], bool]) -> list[str]:
    """What has to be known of the times compared, and of which of them; nothing where it holds for none."""
    where: dict[str, list[int]] = defaultdict(list)
    for side in (power, best_of(group.curves, SOFTMAX), best_of(group.curves, LINEAR)):
        for ctx, row in side.items():
            if holds(row) and ctx not in where[_label(row)]:
                where[_label(row)].append(ctx)
    named = [f"{label} at {_contexts(contexts)}" for label, contexts in where.items() if contexts]
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


def _partial(group: Group, families: tuple[str, ...], what: str, p: int | None = None) -> list[str]:
    """Contexts at which a side has no time to trust, though it has some elsewhere and was tried here."""
    have = best_of(group.curves, families, p)
    tried = [row for row in group.rows if row.family in families and p in (None, row.p)]
    missing = [row for row in tried if row.ctx not in have]
    return [_nothing(f"{what} at {_contexts({row.ctx for row in missing})}", missing)] if have and missing else []


def _nothing(what: str, tried: Sequence[Row]) -> str:
    """Why there is no number, in the words of the rows; the first three different ones."""
    first = {(_label(row), row.status): row for row in reversed(tried)}
    words = [f"{label}: {_why(row)}" for (label, _), row in reversed(first.items())]
    shown = "; ".join(words[:3]) + (f"; and {len(words) - 3} more" if len(words) > 3 else "")
    return f"No time to trust for {what}: {shown}."


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


def _contexts(contexts: Sequence[int] | set[int] | dict[int, None]) -> str:
    return ", ".join(context_text(ctx) for ctx in sorted(contexts))


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
