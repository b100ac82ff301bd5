"""What several runs of one device say together, in sentences: each question answered by the run that knows most of it.

A setting that several runs measured is told once, by the run that holds it at the most contexts; where these are
equally many by the one that goes further, and then by the later one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from powerbench.crossover import percent_text
from powerbench.problem import PASSES
from powerbench.reports.answers import capital, comparisons
from powerbench.reports.curves import POWER, SOFTMAX, Group, Setting, best_of, groups, setting_names
from powerbench.reports.decoding import decode_tables
from powerbench.reports.findings import choice_sentence, degree_sentence, phase_sentence
from powerbench.reports.longest import Longest, longest
from powerbench.reports.rows import Row, rows
from powerbench.reports.text import significant
from powerbench.results.model import Run


@dataclass(frozen=True)
class Statement:
    """A sentence or two, what they are about (a setting, a degree), and the run that they are read from."""

    about: str
    text: str
    run: Run


@dataclass(frozen=True)
class Topic:
    """One question and all that the runs say of it, the statement that rests on most contexts first."""

    title: str
    statements: list[Statement]


@dataclass(frozen=True)
class Told:
    """Power attention of one degree in one setting, in the run that holds it."""

    run: Run
    group: Group
    p: int
    power: dict[int, Row]  # its fastest rows by context

    @property
    def shared(self) -> list[int]:
        """Contexts at which some softmax attention was measured too, ascending."""
        return sorted(self.power.keys() & best_of(self.group.curves, SOFTMAX).keys())


@dataclass(frozen=True)
class Headlines:
    """The findings of the runs of one device."""

    device: str
    topics: list[Topic]
    longest: list[Longest]  # a row for each setting and degree that was compared, at its longest context


def headlines(runs: Sequence[Run]) -> list[Headlines]:
    """One for each device, in the order of the runs. A topic of which no run says anything is left out."""
    by_device: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_device[run.header.environment.device].append(run)
    return [_of_device(device, members) for device, members in by_device.items()]


def _of_device(device: str, runs: Sequence[Run]) -> Headlines:
    told = [one for run in runs for one in _told(run)]
    shared = [one for one in told if one.shared]
    compared = _once(shared, lambda one: (len(one.shared), one.shared[-1]))
    names = _names(told)
    table = [longest(names[one.group.setting], one.p, one.run, one.group, one.power, one.shared[-1])
             for one in sorted(_once(shared, _rivals_at_the_end), key=_order)]  # fmt: skip
    topics = [
        Topic("Against softmax and linear attention", [
            Statement(_about(one, names), " ".join(map(capital, comparisons(one.p, one.power, one.group))), one.run)
            for one in sorted(compared, key=lambda one: (-len(one.shared), *_order(one)))
        ]),
        Topic("Use of the hardware", _utilization(table)),
        _each("What d_tile and chunk are worth", told, names, lambda one: choice_sentence(one.power, one.group)),
        _each("What a degree costs", told, names, lambda one: degree_sentence(one.p, one.power, one.group)),
        _each("Where the time goes", told, names, lambda one: phase_sentence(one.power)),
        Topic("Decoding", [Statement(table.name, " ".join(table.sentences), run)
                           for run in runs for table in decode_tables(run) if table.sentences]),
        Topic("Wrong against float64, and so without a speed", [one for run in runs for one in wrong(run)]),
    ]  # fmt: skip
    return Headlines(device, [topic for topic in topics if topic.statements], table)


def wrong(run: Run) -> list[Statement]:
    """The contestants that the gate refused, by kernel, pass and head dimension, with their errors."""
    found: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows(run):
        if row.status == "wrong":
            found[row.kernel, row.pass_, row.head_dim].append(row)
    return [
        Statement(f"{kernel}, {pass_}, d = {d}", f"{len(members)} {_cases(members)} wrong{_errors(members)}.", run)
        for (kernel, pass_, d), members in found.items()
    ]


def _cases(members: Sequence[Row]) -> str:
    return "case is" if len(members) == 1 else "cases are"


def _errors(members: Sequence[Row]) -> str:
    """Their relative errors, and what was allowed; nothing where an output was not finite."""
    errors = sorted(row.error for row in members if row.error is not None)
    allowed = sorted({row.measurement.tolerance for row in members if row.measurement.tolerance is not None})
    if not errors:
        return ", not finite"
    ends = dict.fromkeys(significant(error) for error in (errors[0], errors[-1]))
    limit = f", where {significant(allowed[-1])} is allowed" if allowed else ""
    return f": relative error {' to '.join(ends)}{limit}"


def _told(run: Run) -> Iterator[Told]:
    for group in groups([row for row in rows(run) if row.pass_ != "decode"]):
        for p in sorted({curve.p for curve in group.curves if curve.family in POWER and curve.p}):
            yield Told(run, group, p, best_of(group.curves, POWER, p))


def _once(told: Iterable[Told], known: Callable[[Told], tuple[int, ...]]) -> list[Told]:
    """Each setting and degree once, from p = 2 on: that which knows most of it, the latest among equals."""
    best: dict[tuple[Setting, int], Told] = {}
    for one in sorted(told, key=lambda one: (known(one), one.run.header.started)):
        if one.p > 1:
            best[_plain(one.group.setting), one.p] = one
    return list(best.values())


def _rivals_at_the_end(one: Told) -> tuple[int, int]:
    """The longest context, and how many contestants were measured there."""
    return one.shared[-1], sum(one.shared[-1] in curve.points for curve in one.group.curves)


def _plain(setting: Setting) -> Setting:
    """Whatever the batch."""
    return replace(setting, batch=None)


def _each(title: str, told: Sequence[Told], names: dict[Setting, str], say: Callable[[Told], list[str]]) -> Topic:
    """What is said of each setting and degree of which there is something to say, by the run with most rows of it."""
    speaking = _once([one for one in told if say(one)], lambda one: (len(one.group.rows),))
    return Topic(
        title,
        [Statement(_about(one, names), " ".join(say(one)), one.run) for one in sorted(speaking, key=_order)],
    )


def _utilization(table: Sequence[Longest]) -> list[Statement]:
    """MFU beside FlashAttention's, a statement for each pass and degree; the lowest and the highest share."""
    found: dict[tuple[str, int], list[Longest]] = defaultdict(list)
    for line in table:
        if line.of_flash is not None:
            found[line.pass_words, line.p].append(line)
    statements = []
    for (words, p), lines in found.items():
        low, high = (pick(lines, key=lambda line: line.of_flash or 0.0) for pick in (min, max))
        said = [line.utilization for line in ((low,) if low is high else (low, high))]
        best = percent_text(high.of_flash or 0.0)
        least = percent_text(low.of_flash or 0.0)
        shares = best if least == best else f"{least} to {best}"
        text = f"{shares} of FlashAttention's own MFU: {'; '.join(said)}."
        statements.append(Statement(f"{words}, p = {p}", text, high.run))
    return statements


def _names(told: Sequence[Told]) -> dict[Setting, str]:
    """A name for each setting, with its details where another one has the same."""
    found = {one.group.setting: one.group for one in told}
    return dict(zip(found, setting_names(list(found.values())), strict=True))


def _about(one: Told, names: dict[Setting, str]) -> str:
    return f"{names[one.group.setting]}, p = {one.p}"


def _order(one: Told) -> tuple[int, str, int, int, int]:
    setting = one.group.setting
    return PASSES.index(setting.pass_), setting.dtype, setting.head_dim, setting.heads, one.p
