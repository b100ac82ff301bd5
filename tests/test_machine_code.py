"""tools.machine_code: what the assembler got wrong is found in the listing of a kernel."""

from __future__ import annotations

import pytest

from tools.machine_code import undefined_reads

# From key_value_gradient_kernel as ptxas 12.8 assembled it for float16, p = 2, d = 16, e = 64: UR18 and UR19, the
# address of the second product's operand, are read before anything has written them.
FAULTY = """
        /*0370*/                   UMOV UR13, 0x400 ;
        /*17b0*/              @!P6 BRA `(.L_x_0) ;
        /*17c0*/                   UIADD3 UR11, UR13, 0x6000, URZ ;
        /*1800*/                   UIADD3 UR18, UP0, UR18, 0x20, URZ ;
        /*1820*/                   USHF.R.U32.HI UR11, URZ, 0x4, UR11 ;
        /*1860*/                   UIADD3.X UR19, UR19, -0x3ffffff0, URZ, UP0, !UPT ;
.L_x_1:
        /*3970*/                   HGMMA.64x16x16.F32.BF16 R120, R28, gdesc[UR16].tnspB, R120 ;
        /*47a0*/               @P6 BRA `(.L_x_1) ;
.L_x_0:
        /*9000*/                   EXIT ;
"""


def test_a_register_that_nothing_has_written_is_found():
    assert undefined_reads(FAULTY) == [
        "UIADD3 UR18, UP0, UR18, 0x20, URZ", "UIADD3.X UR19, UR19, -0x3ffffff0, URZ, UP0, !UPT",
    ]  # fmt: skip


def test_the_same_code_with_the_register_written_is_right():
    right = FAULTY.replace("/*17c0*/", "/*17b8*/ UMOV UR18, UR13 ;\n /*17b9*/ UMOV UR19, URZ ;\n /*17c0*/")
    assert undefined_reads(right) == []


def test_a_register_written_on_one_path_counts_as_written():
    listing = """
        /*0010*/               @P0 BRA `(.L_x_1) ;
        /*0020*/                   UMOV UR4, 0x1 ;
.L_x_1:
        /*0030*/                   IADD3 R2, R2, UR4, RZ ;
        /*0040*/                   EXIT ;
"""
    assert undefined_reads(listing) == []


def test_what_stands_only_behind_a_jump_is_not_on_the_way():
    listing = """
        /*0010*/                   BRA `(.L_x_1) ;
        /*0020*/                   UMOV UR4, 0x1 ;
.L_x_1:
        /*0030*/                   IADD3 R2, R2, UR4, RZ ;
        /*0040*/                   EXIT ;
"""
    assert undefined_reads(listing) == ["IADD3 R2, R2, UR4, RZ"]


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("HGMMA.64x64x16.F32 R56, gdesc[UR44], RZ, !UPT, gsb0", {44, 45, 46, 47}),
        ("HGMMA.64x16x16.F32.BF16 R120, R24, gdesc[UR44].tnspB, R120", {46, 47}),
        ("LDGSTS.E [R20+0x8804], desc[UR20][R24.64+0x4], P1", {20, 21}),
        ("UIADD3.64 UR26, UR22, 0x80, URZ", {22, 23}),
        ("STS.128 [R12+UR13+0x1000], R28", {13}),
        ("UISETP.LT.AND UP0, UPT, UR16, UR5, UPT", {16, 5}),
        ("UIMAD.WIDE.U32 UR4, UR25, UR8, URZ", {25, 8}),
        ("UIMAD.WIDE UR4, UR25, 0x4, UR8", {25, 8, 9}),
    ],
)
def test_the_registers_that_an_instruction_reads(line, read):
    def undefined(left_out):
        given = "".join(f"/*{i:04x}*/ UMOV UR{i}, URZ ;\n" for i in range(64) if i != left_out)
        return undefined_reads(f"{given}/*9000*/ {line} ;\n/*9010*/ EXIT ;")

    assert {i for i in range(64) if undefined(i)} == read
