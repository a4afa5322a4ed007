"""`--peft lora:r=8,alpha=16`: what an adapter is, checked before torch or PEFT are loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from blockzo.finetune.errors import UserError

FORM = "lora:r=8,alpha=16,targets=q_proj+v_proj"


@dataclass(frozen=True)
class LoraOptions:
    """`targets`: last parts of the names of the linear layers that get one; none: those that PEFT has for the architecture."""

    r: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "lora", **asdict(self), "targets": list(self.targets)}


def parse_adapter(text: str) -> LoraOptions:
    """
    Raises:
        UserError: another kind, an unknown option, or a value that it cannot have.
    """
    kind, _, rest = text.partition(":")
    if kind != "lora":
        raise UserError(
            f"--peft is {text!r}; expected {FORM}. Other kinds of PEFT are trained from Python (docs/trainer.md)"
        )
    given: dict[str, Any] = {}
    for entry in rest.split(",") if rest else ():
        name, found, value = (part.strip() for part in entry.partition("="))
        if not found or name in given or name not in ("r", "alpha", "targets"):
            raise UserError(f"--peft has {entry!r}; expected r, alpha and targets, each once: {FORM}")
        if name == "targets":
            given[name] = tuple(value.split("+"))
            if not all(given[name]):
                raise UserError(f"--peft has {entry!r}; expected names of layers with + between: targets=q_proj+v_proj")
        elif not value.isdecimal() or not 1 <= int(value) <= 4096:
            raise UserError(f"--peft has {entry!r}; expected a whole number from 1 to 4096")
        else:
            given[name] = int(value)
    return LoraOptions(**given)
