"""Registers of a Hopper matrix product that are touched while it runs, read off the disassembly.

An HGMMA runs on after it was issued, and until a WARPGROUP.DEPBAR covers its group it reads the registers of its left operand and
writes those of its result. Whatever writes the first, or touches the second, before that wait makes the product wrong at times.
Waits are taken as they are written; that a scoreboard might hold an instruction back as well is not counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S[^;]*?)\s*;")
_PRODUCT = re.compile(r"HGMMA\.\d+x(\d+)x\d+\S*\s+R(\d+),\s*(?:R(\d+)|u?gdesc\S*)")
_WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE\s+gsb0,\s*0x([0-9a-f]+)")
_JUMP = re.compile(r"(?:BRA|CALL)\b.*?`\((\S+)\)")
_READS_ONLY = ("ST", "RED", "BAR", "LDGSTS", "BRA", "RET", "WARPSYNC", "UTMA", "SYNCS", "R2UR", "R2P", "WARPGROUP")


@dataclass(frozen=True)
class _Flight:
    text: str
    group: int
    left: frozenset[int]
    result: frozenset[int]


def _width(opcode: str) -> int:
    if ".128" in opcode or opcode.startswith("LDSM") and ".4" in opcode:
        return 4
    two = ".64" in opcode or "WIDE" in opcode or opcode.startswith("LDSM") and ".2" in opcode
    return 2 if two or opcode == "CS2R" else 1


def written(text: str) -> frozenset[int]:
    """Numbers of the registers that an instruction writes."""
    opcode = text.split()[0]
    # the target of some is a predicate, named before or behind a register
    found = re.match(r"\S+\s+(?:U?PT?\d*,\s*)?R(\d+)\b", text)
    if found is None or opcode.startswith(_READS_ONLY):
        return frozenset()
    return frozenset(range(int(found[1]), int(found[1]) + _width(opcode)))


def touched(text: str) -> frozenset[int]:
    """Those that it names, and what it writes."""
    return frozenset(map(int, re.findall(r"\bR(\d+)\b", text))) | written(text)


@dataclass(frozen=True)
class Listing:
    """`nvdisasm -c` of one kernel: its instructions without their predicates, and where its labels point."""

    lines: list[str]
    labels: dict[str, int]

    @staticmethod
    def of(sass: str) -> Listing:
        lines: list[str] = []
        labels: dict[str, int] = {}
        for line in sass.splitlines():
            if label := re.match(r"(\.L_x_\d+|\$\S+):", line.strip()):
                labels[label[1]] = len(lines)
            elif word := _LINE.match(line):
                lines.append(word[2])
        return Listing(lines, labels)

    def loops(self) -> list[list[str]]:
        """The instructions of every loop: from the target of a branch back to that branch."""
        found = []
        for place, text in enumerate(self.lines):
            branch = _JUMP.match(text)
            if branch and text.startswith("BRA") and self.labels.get(branch[1], place + 1) <= place:
                found.append(self.lines[self.labels[branch[1]] : place + 1])
        return found

    def main_loop(self) -> list[str]:
        """The shortest of the loops that multiply matrices most; where none does, the longest. A wait that is written out of line
        is one too, from its place in the main loop to the end of the program.
        """
        loops = sorted(self.loops(), key=len)
        products = [sum("MMA" in text.split()[0] for text in body) for body in loops]
        most = max(products, default=0)
        return loops[products.index(most) if most else -1] if loops else []

    def called(self, text: str) -> list[str]:
        """The instructions of the function that a CALL enters; none for others."""
        target = _JUMP.match(text)
        if target is None or not text.startswith("CALL"):
            return []
        body = self.lines[self.labels[target[1]] :]
        return body[: next((n for n, line in enumerate(body) if line.startswith("RET")), len(body)) + 1]

    def hazards(self) -> list[str]:
        """Pairs of a product and an instruction that interferes with it, in two turns of each loop."""
        found: dict[str, None] = {}
        for body in self.loops():
            flight: list[_Flight] = []
            groups = 0
            for text in body * 2:
                if wait := _WAIT.match(text):
                    flight = [f for f in flight if f.group > groups - int(wait[1], 16)]
                elif product := _PRODUCT.match(text):
                    columns, result, left = int(product[1]), int(product[2]), product[3]
                    named = frozenset(range(int(left), int(left) + 4)) if left else frozenset()
                    # a chain of products on one result is ordered by the hardware
                    flight.append(_Flight(text, groups + 1, named, frozenset(range(result, result + columns // 2))))
                    groups += "gsb0" in text
                else:
                    for step in (text, *self.called(text)):
                        lost = [f for f in flight if f.left & written(step) or f.result & touched(step)]
                        found.update((f"{f.text} <- {step}", None) for f in lost)
        return list(found)


_ENDS = ("BRA", "BSY", "BSS", "EXIT", "RET", "CALL", "WARPSYNC")


def loads_together(lines: list[str]) -> int:
    """The most 16-byte loads of global memory that a lane has asked for before it uses one of them, or branches."""
    most = count = 0
    asked: frozenset[int] = frozenset()
    for text in lines:
        load = re.match(r"LDG\S*\.128", text)
        result = written(text) if load else frozenset()
        if text.startswith(_ENDS) or (touched(text) - result) & asked:
            count, asked = 0, frozenset()
        if load:
            count, asked = count + 1, asked | result
            most = max(most, count)
    return most
