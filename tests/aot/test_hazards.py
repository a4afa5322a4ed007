"""The reader of disassemblies finds a register that is touched too early, and only that."""

from __future__ import annotations

import pytest

from tests.aot.hazards import Listing

PRODUCT = "HGMMA.64x16x16.F32.BF16 R24, R40, gdesc[UR16], R24, gsb0"
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"
ONE_LEFT = "WARPGROUP.DEPBAR.LE gsb0, 0x1"


def listing(*body: str) -> Listing:
    lines = [".L_x_0:", *body, "@P0 BRA `(.L_x_0)", "EXIT", "$slow:", "MUFU.RSQ R43, R2", "RET.REL.NODEC R2 `(kernel)"]
    text = "\n".join(line if line.endswith(":") else f"        /*{n:04x}*/ {line} ;" for n, line in enumerate(lines))
    return Listing.of(text)


@pytest.mark.parametrize(
    "body",
    [
        ("MOV R41, R2", PRODUCT, WAIT),
        # the result is read once the wait has come
        (PRODUCT, WAIT, "FADD R50, R24, R2"),
        # another product on the same result; registers beside the operands
        (PRODUCT, PRODUCT, "IADD3 R44, R39, R2, RZ", WAIT),
        # reading the operand is no harm, nor is storing it
        (PRODUCT, "IADD3 R50, R40, R2, RZ", "STG.E.128 [R2], R40", WAIT),
        ("CALL.REL.NOINC `($slow)", PRODUCT, WAIT),
        # the older of two is done
        (PRODUCT, PRODUCT.replace("R40", "R48"), ONE_LEFT, "MOV R40, R2", WAIT),
    ],
)
def test_sound(body: tuple[str, ...]) -> None:
    assert listing(*body).hazards() == []


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ((PRODUCT, "MOV R43, R2", WAIT), "MOV R43, R2"),
        # the turn before
        (("LDS.128 R40, [R2]", PRODUCT, ONE_LEFT), "LDS.128 R40, [R2]"),
        (("@!P1 IMAD.WIDE.U32 R42, R2, R3, RZ", PRODUCT, ONE_LEFT), "IMAD.WIDE.U32 R42, R2, R3, RZ"),
        (("LOP3.LUT P0, R41, R2, R3, RZ, 0xc0, !PT", PRODUCT), "LOP3.LUT P0, R41, R2, R3, RZ, 0xc0, !PT"),
        ((PRODUCT, "FADD R50, R31, R2", WAIT), "FADD R50, R31, R2"),
        ((PRODUCT, "CALL.REL.NOINC `($slow)", WAIT), "MUFU.RSQ R43, R2"),
        ((PRODUCT, PRODUCT.replace("R40", "R48"), ONE_LEFT, "MOV R48, R2", WAIT), "MOV R48, R2"),
    ],
)
def test_touched_too_early(body: tuple[str, ...], found: str) -> None:
    assert {pair.split(" <- ")[1] for pair in listing(*body).hazards()} == {found}


def test_a_wait_out_of_line_is_not_the_main_loop() -> None:
    """As on Blackwell: the loop multiplies twice and waits between; the wait that fails goes on behind the program."""
    product, wait = "UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8]", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5], R6"
    main = [
        ".L_x_0:",
        product,
        wait,
        "@!P0 BRA `(.L_x_2)",
        ".L_x_1:",
        product,
        "IADD3 R2, R2, 0x1, RZ",
        "@P1 BRA `(.L_x_0)",
    ]
    after = ["FADD R0, R1, R2"] * 20 + ["EXIT", ".L_x_2:", wait, "@P0 BRA `(.L_x_1)", "BRA `(.L_x_2)"]
    text = "\n".join(
        line if line.endswith(":") else f"        /*{n:04x}*/ {line} ;" for n, line in enumerate([*main, *after])
    )
    found = Listing.of(text)
    assert len(found.main_loop()) == 6 < max(map(len, found.loops()))
    assert Listing.of("        /*0000*/ EXIT ;").main_loop() == []
