"""Finds compiled kernels that read registers which nothing has written: code that the assembler got wrong.

    python -m tools.machine_code [FOLDER ...]     each .cubin below a folder [Triton's cache]

ptxas 12.8, which Triton 3.6 brings, was seen to lose the definition of a uniform register that holds the address of a
matrix product's operand: the product then reads elsewhere in shared memory, or outside it. The same PTX assembled by
12.9 is right. Such code cannot be seen in Python, and a test shows it only where the stale register does harm, so the
code itself is read. For each kernel the control flow graph is made from nvdisasm's listing, and for each instruction
the uniform registers are found that no path from the entry has written.

Prints a line for each such kernel and one for the total. Exit status: 0 none, 1 some, 2 nothing to read.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import which

INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?(U?P\w+)\s+)?([A-Za-z0-9_.]+)\s*(.*?)\s*;")
LABEL = re.compile(r"^([.\w$]+):")
REGISTER = re.compile(r"(gdesc\[|desc\[)?\bUR(\d+)(\.64)?")
TARGET = re.compile(r"`\(([^)]+)\)")
# Of the instructions that begin with U these have no uniform register as their result; the others below have one.
NO_RESULT = ("UISETP", "UPLOP3", "UFSETP", "UTM", "UBLK", "UCGABAR", "USETMAXREG")
RESULT = ("R2UR", "S2UR", "VOTEU", "REDUX", "CREDUX", "LDCU")


@dataclass(frozen=True)
class Instruction:
    """One line of a listing: the uniform registers it reads and writes, and where control goes from it."""

    text: str
    reads: frozenset[int]
    writes: frozenset[int]
    target: str | None  # of a branch
    falls_through: bool


def parse(listing: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of nvdisasm's listing of one kernel, and the position that each label stands before."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        found = INSTRUCTION.search(line)
        if found:
            instructions.append(_instruction(*found.groups()))
        elif label := LABEL.match(line.strip()):
            labels[label.group(1)] = len(instructions)
    return instructions, labels


def _instruction(predicate: str | None, operation: str, operands: str) -> Instruction:
    base = operation.split(".", maxsplit=1)[0]
    reads: set[int] = set()
    writes: set[int] = set()
    has_result = base in RESULT or (base.startswith("U") and not base.startswith(NO_RESULT))
    for position, found in enumerate(REGISTER.finditer(operands)):
        kind, number, wide = found.group(1), int(found.group(2)), found.group(3) is not None
        if has_result and position == 0 and kind is None:
            count = 4 if ".128" in operation else 2 if ".64" in operation or ".WIDE" in operation else 1
            writes |= set(range(number, number + count))
        elif kind == "gdesc[":  # of both operands; of the second alone where the first stands in registers
            first = 0 if re.match(r"R\d+, gdesc", operands) else 2
            reads |= set(range(number + first, number + 4))
        else:
            last = operands.endswith(f"UR{number}")  # of .WIDE the addend alone is wide
            pair = kind or wide or (base.startswith("U") and (".64" in operation or (".WIDE" in operation and last)))
            reads |= {number, number + 1} if pair else {number}
    branch = TARGET.search(operands) if base == "BRA" else None
    ends = base in ("BRA", "EXIT", "RET") and predicate in (None, "PT", "UPT") and not re.match(r"!?U?P\d", operands)
    text = f"{operation} {operands}"
    return Instruction(text, frozenset(reads), frozenset(writes), branch.group(1) if branch else None, not ends)


def undefined_reads(listing: str) -> list[str]:
    """The instructions of a listing that read a uniform register which no path to them has written."""
    instructions, labels = parse(listing)
    if not instructions:
        return []
    written: list[frozenset[int] | None] = [None] * len(instructions)  # by some path, before each; None: not reached
    written[0] = frozenset()
    todo = [0]
    while todo:
        i = todo.pop()
        before = written[i]
        assert before is not None
        after = before | instructions[i].writes
        for j in _next(i, instructions[i], labels):
            known = written[j] if j < len(written) else after
            if known is None or not after <= known:
                written[j] = after if known is None else known | after
                todo.append(j)
    return [
        instruction.text
        for instruction, before in zip(instructions, written, strict=True)
        if before is not None and not instruction.reads <= before
    ]


def _next(i: int, instruction: Instruction, labels: dict[str, int]) -> Iterator[int]:
    if instruction.falls_through:
        yield i + 1
    if instruction.target in labels:
        yield labels[instruction.target]


def nvdisasm() -> str | None:
    """The disassembler: the toolkit's, or the one in Triton's wheel."""
    if which("nvdisasm"):
        return which("nvdisasm")
    import triton  # noqa: PLC0415  it may be missing

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return str(path) if path.exists() else None


def scan(cubins: list[Path], disassembler: str) -> dict[Path, list[str]]:
    """The faulty instructions of each compiled kernel."""

    def one(path: Path) -> list[str]:
        done = subprocess.run([disassembler, "-c", str(path)], capture_output=True, text=True, check=True)
        return undefined_reads(done.stdout)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(cubins, pool.map(one, cubins), strict=True))


def cubins_below(folders: list[str]) -> list[Path]:
    """The compiled kernels below the folders, or in Triton's cache if there are none."""
    default = os.environ.get("TRITON_CACHE_DIR") or str(Path.home() / ".triton" / "cache")
    return sorted(path for folder in folders or [default] for path in Path(folder).rglob("*.cubin"))


def main() -> None:
    cubins, disassembler = cubins_below(sys.argv[1:]), nvdisasm()
    if not cubins or disassembler is None:
        print("machine_code: no .cubin there" if disassembler else "machine_code: nvdisasm is not installed")
        sys.exit(2)
    faulty = {path: found for path, found in scan(cubins, disassembler).items() if found}
    for path, found in faulty.items():
        print(f"{path}: {len(found)} reads of registers that nothing has written, first: {found[0]}")
    print(f"machine_code: {len(cubins)} kernels, {len(faulty)} with such reads")
    sys.exit(1 if faulty else 0)


if __name__ == "__main__":
    main()
