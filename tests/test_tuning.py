"""Other people's autotuners: a choice for each problem."""

from __future__ import annotations

import sys
import types

import pytest

from powerbench.kernels import tuning
from powerbench.problem import Problem

triton = pytest.importorskip("triton")

SHORT = Problem(64, 1024, 8, 8, 64, 64, "bf16", True)
LONG = Problem(1, 65536, 8, 8, 64, 64, "bf16", True)


def body(x):
    pass


@pytest.fixture
def package(monkeypatch):
    """A package with two tuned kernels, one of them below heuristics, and one kernel that is not tuned."""
    configs = [triton.Config({}, num_warps=n) for n in (1, 2)]
    plain = triton.autotune(configs, key=["x"])(triton.JITFunction(body))
    below = triton.heuristics({"Y": lambda args: True})(triton.autotune(configs, key=["x"])(triton.JITFunction(body)))
    home, module = types.ModuleType("tuned"), types.ModuleType("tuned.ops")
    module.plain, module.below, module.other = plain, below, triton.JITFunction(body)
    module.again = plain  # imported under another name
    monkeypatch.setitem(sys.modules, "tuned", home)
    monkeypatch.setitem(sys.modules, "tuned.ops", module)
    monkeypatch.setitem(sys.modules, "tuned_by_others", types.ModuleType("tuned_by_others"))
    sys.modules["tuned_by_others"].kernel = triton.autotune(configs, key=["x"])(triton.JITFunction(body))
    monkeypatch.setattr(tuning, "_current", {})
    monkeypatch.setattr(tuning, "_choices", {})
    return plain, below.fn


def test_all_tuners_of_the_package_are_found(package):
    assert {id(tuner) for tuner in tuning.autotuners("tuned")} == {id(tuner) for tuner in package}
    assert len(list(tuning.autotuners("tuned_by_others"))) == 1
    assert list(tuning.autotuners("absent")) == []


def test_each_problem_has_its_own_choice_and_keeps_it(package):
    first, second = package
    tuning.tuned_for("tuned", SHORT)
    first.cache["key"], second.cache["key"] = "for many", "also for many"
    tuning.tuned_for("tuned", LONG)
    assert (first.cache, second.cache) == ({}, {}), "has to choose anew"
    first.cache["key"] = "for one"
    tuning.tuned_for("tuned", Problem(*(getattr(SHORT, field) for field in SHORT.__struct_fields__)))
    assert (first.cache["key"], second.cache["key"]) == ("for many", "also for many")
    tuning.tuned_for("tuned", LONG)
    assert first.cache == {"key": "for one"}
    assert sys.modules["tuned_by_others"].kernel.cache == {}


def test_nothing_is_looked_for_while_the_problem_stays(package, monkeypatch):
    """It stands in the forward pass, whose time by the host's clock is told too."""
    tuning.tuned_for("tuned", LONG)
    monkeypatch.setattr(tuning, "autotuners", lambda name: pytest.fail("looked again"))
    tuning.tuned_for("tuned", LONG)


def test_a_configuration_is_tried_for_a_short_time(package, monkeypatch):
    asked = []
    monkeypatch.setattr("triton.testing.do_bench", lambda call, **options: asked.append(options))
    tuning.tuned_for("tuned", LONG)
    package[0].do_bench(lambda: None, quantiles=(0.5,))
    assert asked == [{"warmup": 2, "rep": 10, "quantiles": (0.5,)}]
