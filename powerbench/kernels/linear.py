"""Linear attention through powerbench's own kernels: power attention at p = 1, unnormalised, gated where asked."""

from __future__ import annotations

from powerbench.kernels.power.contestants import contestant

LINEAR_KERNELS = (
    contestant("linear-triton", "linear", "linear attention: our Triton kernels at p = 1", "triton", degree=1),
    contestant("linear-torch", "linear", "linear attention: our PyTorch kernel at p = 1", "torch", degree=1),
)
