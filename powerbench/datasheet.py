"""What the makers of known GPUs promise, to set beside what was measured. Dense rates: no figure here counts sparsity.

To add a device: its name as CUDA reports it, and where the figures are from.
"""

from __future__ import annotations

from typing import NamedTuple

from powerbench.roofline import Ceiling


class Datasheet(NamedTuple):
    """Peak matmul TFLOP/s by dtype, accumulated in fp32 (bf16, fp16, tf32 on tensor cores), and memory GB/s."""

    tflops: dict[str, float]
    memory_gb_per_s: float

    def rate(self, ceiling: Ceiling) -> float | None:
        """The figure to compare with: FLOP/s or bytes/s; None where the datasheet has none (L2, launches)."""
        if ceiling.kind == "matmul":
            tflops = self.tflops.get(ceiling.dtype or "")
            return tflops * 1e12 if tflops else None
        return self.memory_gb_per_s * 1e9 if ceiling.kind in ("copy", "read") else None


def _rates(tensor_16_bit: float, tf32: float, fp32: float) -> dict[str, float]:
    return {"bf16": tensor_16_bit, "fp16": tensor_16_bit, "tf32": tf32, "fp32": fp32}


# NVIDIA's datasheets print tensor core figures with sparsity, twice the dense ones, for Hopper and Ada: halved here.
# Names: nvidia-smi's, which are CUDA's. "80GB HBM3" is the H100 SXM, and "H200" without more the H200 SXM.
DATASHEETS: dict[str, Datasheet] = {
    # "NVIDIA H200 Tensor Core GPU" datasheet, columns SXM and NVL
    "NVIDIA H200": Datasheet(_rates(989.5, 494.5, 67.0), 4800),
    "NVIDIA H200 NVL": Datasheet(_rates(835.5, 417.5, 60.0), 4800),
    # "NVIDIA H100 Tensor Core GPU" datasheet: columns SXM and NVL; the PCIe one is in editions of before the NVL
    "NVIDIA H100 80GB HBM3": Datasheet(_rates(989.5, 494.5, 67.0), 3350),
    "NVIDIA H100 NVL": Datasheet(_rates(835.5, 417.5, 60.0), 3900),
    "NVIDIA H100 PCIe": Datasheet(_rates(756.5, 378.0, 51.0), 2000),
    # "NVIDIA A100 Tensor Core GPU" datasheet, columns 80GB SXM and PCIe, in earlier editions 40GB (dense is printed)
    "NVIDIA A100-SXM4-80GB": Datasheet(_rates(312.0, 156.0, 19.5), 2039),
    "NVIDIA A100 80GB PCIe": Datasheet(_rates(312.0, 156.0, 19.5), 1935),
    "NVIDIA A100-SXM4-40GB": Datasheet(_rates(312.0, 156.0, 19.5), 1555),
    "NVIDIA A100-PCIE-40GB": Datasheet(_rates(312.0, 156.0, 19.5), 1555),
    # "NVIDIA L4 Tensor Core GPU" datasheet
    "NVIDIA L4": Datasheet(_rates(121.0, 60.0, 30.3), 300),
    # "NVIDIA Ada GPU Architecture" whitepaper, appendix A; 16 bit with fp32 accumulation, dense
    "NVIDIA GeForce RTX 4090": Datasheet(_rates(165.2, 82.6, 82.6), 1008),
}
