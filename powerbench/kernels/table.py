"""KERNELS: every contestant, one row each. To add one, write its adapter and put its record here.

Other packages add theirs through the entry-point group `powerbench.kernels`: each entry point is a `Kernel`
(`powerbench.kernels.entries`).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points

from powerbench.errors import UserError
from powerbench.kernels import entries
from powerbench.kernels.compiled import COMPILED_KERNELS
from powerbench.kernels.fla import FLA_KERNELS
from powerbench.kernels.flex import FLEX_KERNELS
from powerbench.kernels.kernel import Kernel
from powerbench.kernels.linear import LINEAR_KERNELS
from powerbench.kernels.power.contestants import POWER_KERNELS
from powerbench.kernels.retention import RETENTION_KERNELS
from powerbench.kernels.softmax import SOFTMAX_KERNELS
from powerbench.kernels.window import WINDOW_KERNELS

KERNELS: tuple[Kernel, ...] = (
    *POWER_KERNELS, *LINEAR_KERNELS, *SOFTMAX_KERNELS, *FLA_KERNELS, *FLEX_KERNELS, *WINDOW_KERNELS,
    *COMPILED_KERNELS, *RETENTION_KERNELS,
)  # fmt: skip


def available() -> Mapping[str, Kernel]:
    """All contestants by name: the table's, then those of installed packages.

    An entry point that does not load, is no Kernel, or takes a name that is taken is a row that refuses every case.
    """
    table = {kernel.name: kernel for kernel in KERNELS}
    taken = set(table) | {kernel.family for kernel in KERNELS}
    for entry in sorted(entry_points(group=entries.GROUP), key=lambda entry: (entry.name, entry.value)):
        kernel = entries.load(entry, taken)
        table[kernel.name] = kernel
        taken.add(kernel.name)
    return table


def select(names: tuple[str, ...], where: str = "--kernels") -> list[Kernel]:
    """The kernels of these names, each a row (sdpa-cudnn) or a family (sdpa), in that order, each once.

    `where` the names stand. Raises UserError naming what is allowed.
    """
    table = available()
    families = dict.fromkeys(kernel.family for kernel in table.values())
    chosen: dict[str, Kernel] = {}
    for name in names:
        members = [kernel for kernel in table.values() if name in (kernel.name, kernel.family)]
        if not members:
            raise UserError(
                f"{where}: {name!r} is no kernel and no family; families are {', '.join(families)}; "
                f"kernels are {', '.join(table)}"
            )
        chosen.update((kernel.name, kernel) for kernel in members)
    return list(chosen.values())
