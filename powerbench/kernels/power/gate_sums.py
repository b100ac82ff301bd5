"""Sums of log gates in PyTorch, and differences of two of them that keep their digits.

The weight of a pair takes exp(a_i - a_j), so the difference must be exact to about 2^-24, whatever the sums have grown
to: under log_g = logsigmoid(randn) they reach -3300 after 4096 tokens, where a float32 resolves 2.4e-4, and 40 hard
resets do the same. Sums are therefore kept in float64, and rounded when a difference has been taken; gradients are
summed in float64 on the way back. A device without float64 keeps a sum as a pair of float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)  # types of devices
GRID = 256.0  # multiples of 1 / GRID add up exactly in float32, to sums of 2^24 / GRID = 65536


class GateSums(NamedTuple):
    """Sums a, in float64; or a = high + low, float32 both, where gradients go through high alone."""

    high: Tensor
    low: Tensor | None

    def at(self, *index: object) -> GateSums:
        """The sums at an index, as a tensor takes it."""
        return GateSums(self.high[index], None if self.low is None else self.low[index])

    def since(self, other: GateSums, dtype: torch.dtype) -> Tensor:
        """a - other in `dtype`: the sum of the gates in between, with an error that is relative to it and not to a."""
        between = self.high - other.high
        return (between if self.low is None else between + (self.low - other.low)).to(dtype)

    def decay(self, dtype: torch.dtype) -> Tensor:
        """exp(a) in `dtype`."""
        return (self.high.exp() if self.low is None else self.high.exp() * (1 + self.low)).to(dtype)


def sum_dtype(device: torch.device) -> torch.dtype:
    """The widest dtype of floating-point numbers on a device."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def clamped(log_g: Tensor, dtype: torch.dtype) -> Tensor:
    """log_g in `dtype`, -inf replaced by what is as good to exp, so that differences of sums stay numbers."""
    return log_g.to(dtype).clamp(min=math.log(torch.finfo(dtype).tiny))


def gate_sums(log_g: Tensor, dtype: torch.dtype) -> GateSums:
    """Sums of log_g [..., C] over its last dimension, for weights in `dtype` (float32 or float64)."""
    log_g = clamped(log_g, dtype)
    if sum_dtype(log_g.device) == torch.float64:
        return GateSums(log_g.cumsum(-1, dtype=torch.float64), None)
    fixed = log_g.detach()
    coarse = (fixed * GRID).round() / GRID
    return GateSums((coarse + (log_g - fixed)).cumsum(-1), (fixed - coarse).cumsum(-1))
