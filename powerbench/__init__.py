"""powerbench: how fast long-context attention really is, and power attention kernels of its own.

`powerbench.power_attention` is loaded on first use, so that `import powerbench` needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from powerbench._version import __version__

if TYPE_CHECKING:
    from powerbench.kernels.power.op import PowerState, power_attention

__all__ = ["PowerState", "__version__", "power_attention"]


def __getattr__(name: str) -> Any:
    if name in ("power_attention", "PowerState"):
        from powerbench.kernels.power import op  # noqa: PLC0415  torch is heavy: only who uses the operator pays

        return getattr(op, name)
    raise AttributeError(f"module 'powerbench' has no attribute {name!r}")
