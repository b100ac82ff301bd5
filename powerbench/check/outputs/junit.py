"""JUnit XML: one test case a case and a demand, in the form that Jenkins, GitLab and GitHub's actions read.

A regression is a failure. Inconclusive cases are skipped, or errors where there are more than allowed, so that the
file is red exactly where the exit status is not 0.
"""

from __future__ import annotations

from xml.etree import ElementTree

from powerbench._version import __version__
from powerbench.check.model import INCONCLUSIVE, NOTHING, CaseVerdict, Comparison, Demand
from powerbench.check.outputs.text import interval, noise_line, times, words
from powerbench.check.words import change
from powerbench.printable import printable

NAME = "powerbench check"


def junit(comparison: Comparison) -> str:
    """The whole file, with its XML declaration."""
    elements = [_of_case(case, comparison) for case in comparison.cases]
    elements += [_of_demand(demand, comparison) for demand in comparison.demands]
    if comparison.exit_status == NOTHING and not any(one.find("error") is not None for one in elements):
        elements.append(_element("testcase", classname=NAME, name="anything was compared", time="0"))
        elements[-1].append(_element("error", type="nothing", message=comparison.summary))
    number = {kind: str(sum(one.find(kind) is not None for one in elements)) for kind in _KINDS}
    suite = _element(
        "testsuite", name=NAME, package="powerbench", id="0", hostname="localhost",
        timestamp=comparison.started.removesuffix("Z"), tests=str(len(elements)), failures=number["failure"],
        errors=number["error"], skipped=number["skipped"],
        time=f"{sum(float(one.get('time', '0')) for one in elements):.6f}",
    )  # fmt: skip
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"baseline": comparison.baseline or "", "new": comparison.new, "device": comparison.device}
    for name, value in {**facts, "powerbench": __version__}.items():
        properties.append(_element("property", name=name, value=value))
    suite.extend(elements)
    lines = (*comparison.notes, noise_line(comparison), comparison.summary)
    ElementTree.SubElement(suite, "system-out").text = "\n".join(printable(line) for line in lines)
    ElementTree.SubElement(suite, "system-err")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


_KINDS = ("failure", "error", "skipped")


def _of_case(case: CaseVerdict, comparison: Comparison) -> ElementTree.Element:
    """Its time is the median of the new run, in seconds."""
    kernel = case.case_id.partition("/")[0]
    seconds = f"{(case.new_ms or 0.0) / 1e3:.6f}"
    element = _element("testcase", classname=kernel, name=case.case_id, time=seconds)
    said = "; ".join(text for text in (change(case.ratio), interval(case), times(case), *words(case)) if text)
    return _with_outcome(element, case.verdict, said, comparison)


def _of_demand(demand: Demand, comparison: Comparison) -> ElementTree.Element:
    element = _element("testcase", classname="demands", name=f"{demand.demand} {demand.of}".strip(), time="0")
    if demand.verdict == "missing":
        element.append(_element("error", type="nothing", message=demand.reason))
        return element
    return _with_outcome(element, demand.verdict, demand.reason, comparison)


def _with_outcome(element: ElementTree.Element, verdict: str, said: str, comparison: Comparison) -> ElementTree.Element:
    too_many = comparison.exit_status == INCONCLUSIVE
    if verdict == "regression":
        element.append(_element("failure", type=verdict, message=said))
    elif verdict == "inconclusive" and too_many:
        element.append(_element("error", type=verdict, message=said))
    elif verdict not in ("ok", "improvement"):
        element.append(_element("skipped", message=f"{verdict}: {said}" if said else verdict))
    return element


def _element(tag: str, **attributes: str) -> ElementTree.Element:
    """XML 1.0 has no control characters, not even escaped."""
    return ElementTree.Element(tag, {name: printable(value) for name, value in attributes.items()})
