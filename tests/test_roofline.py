"""The roofline on numbers that can be checked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench.cost import Cost, Launch, total
from powerbench.roofline import Ceilings, roof, roof_seconds

CEILINGS = Ceilings({"fp32": 1e12}, 1e11)  # they meet at 10 FLOP/byte
COMPUTE = Launch("compute", Cost(8_000_000_000, 10_000_000_000, 10_000_000))  # 10 ms of arithmetic, 0.1 ms of copying
MEMORY = Launch("memory", Cost(1_000_000_000, 1_000_000_000, 2_000_000_000))  # 1 ms of arithmetic, 20 ms of copying


def test_one_launch():
    assert roof_seconds([COMPUTE], "fp32", CEILINGS) == (pytest.approx(0.010), "compute")
    assert roof_seconds([MEMORY], "fp32", CEILINGS) == (pytest.approx(0.020), "memory")


def test_launches_follow_one_another():
    assert roof_seconds([COMPUTE, MEMORY], "fp32", CEILINGS) == (pytest.approx(0.030), "memory")


def test_a_measured_time():
    placed = roof([COMPUTE, MEMORY], "fp32", CEILINGS, 0.060)
    assert placed.intensity == pytest.approx(11 / 2.01)
    assert placed.bound == "memory"
    assert placed.roof_ms == pytest.approx(30.0)
    assert placed.attainable_tflops == pytest.approx(11e9 / 0.030 / 1e12)
    assert placed.roof_fraction == pytest.approx(0.5)
    assert placed.mfu == pytest.approx(9e9 / 0.060 / 1e12)
    assert placed.hfu == pytest.approx(11e9 / 0.060 / 1e12)
    assert placed.valid


def test_faster_than_the_machine_is_invalid():
    assert roof([COMPUTE], "fp32", CEILINGS, 0.0099).valid  # within the tolerance
    assert not roof([COMPUTE], "fp32", CEILINGS, 0.009).valid


def test_no_ceiling_for_the_dtype():
    assert roof([COMPUTE], "bf16", CEILINGS, 0.01) is None
    with pytest.raises(KeyError):
        roof_seconds([COMPUTE], "bf16", CEILINGS)


COSTS = st.builds(
    lambda useful, extra, moved: Launch("x", Cost(useful, useful + extra, moved)),
    *[st.integers(1, 10**12)] * 3,
)


@given(st.lists(COSTS, min_size=1, max_size=5), st.floats(1e-6, 10))
def test_laws(launches, seconds):
    placed = roof(launches, "fp32", CEILINGS, seconds)
    cost = total(launches)
    assert placed.mfu <= placed.hfu <= placed.roof_fraction * (1 + 1e-9)
    assert placed.attainable_tflops <= 1.0 + 1e-9  # the matmul ceiling
    assert placed.attainable_tflops <= placed.intensity * 0.1 * (1 + 1e-9)  # the copy ceiling
    assert roof_seconds(launches, "fp32", CEILINGS)[0] * 1e3 == pytest.approx(placed.roof_ms)
    assert cost == sum((launch.cost for launch in launches), Cost(0, 0, 0))
