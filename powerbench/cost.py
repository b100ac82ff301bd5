"""The ledger of work: what a launch computes and moves, counted from formulas, never from hardware counters.

Conventions, the same for every kernel (shared with docs/measuring.md):

* useful FLOPs: what the mathematics needs. Causal pairs are counted once, power attention's state has the smallest
  symmetric dimension (SPOW), nothing is recomputed. Useful FLOPs over time over the matmul ceiling is MFU.
* executed FLOPs: what the launch really multiplies, redundant tiles, masked halves and recompute included: HFU.
* bytes: the launch's compulsory reads and writes of device memory, each operand once.

A multiply-add is two FLOPs; only matrix products are counted, as `torch.utils.flop_counter` does.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from powerbench.bounds import Name, Work


class Cost(msgspec.Struct, frozen=True, gc=False):
    """Work of one launch, or of several: costs add up."""

    useful_flops: Work
    executed_flops: Work
    bytes: Work

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.useful_flops + other.useful_flops,
            self.executed_flops + other.executed_flops,
            self.bytes + other.bytes,
        )


class Launch(msgspec.Struct, frozen=True, gc=False):
    """One step of an operator that passes through device memory, with its own cost (and so its own roofline bound)."""

    name: Name
    cost: Cost


def total(launches: Iterable[Launch]) -> Cost:
    """The operator's cost: the sum over its launches."""
    costs = [launch.cost for launch in launches]
    if len(costs) == 1:
        return costs[0]
    return Cost(
        sum(cost.useful_flops for cost in costs),
        sum(cost.executed_flops for cost in costs),
        sum(cost.bytes for cost in costs),
    )
