"""`--peft lora:r=8,alpha=16`, `--peft dora`: what an adapter is, checked before torch or PEFT are loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from blockzo.finetune.errors import UserError

FORM = "lora:r=8,alpha=16,targets=q_proj+v_proj"
KINDS = ("lora", "dora")


@dataclass(frozen=True)
class LoraOptions:
    """
    Attributes:
        kind: lora, or dora, which trains the lengths of a weight's rows, too.
        targets: last parts of the names of the linear layers that get one; none: those that PEFT has for the architecture.
    """

    r: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ()
    kind: str = "lora"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "targets": list(self.targets)}


def parse_adapter(text: str) -> LoraOptions:
    """
    Raises:
        UserError: another kind, an unknown option, or a value that it cannot have.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise UserError(
            f"--peft is {text!r}; expected {FORM}, or dora in the place of lora. {_why(kind)}; train them from Python "
            "(docs/trainer.md)"
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
    return LoraOptions(kind=kind, **given)


def _why(kind: str) -> str:
    """What keeps another kind of adapter from the command line."""
    if kind in ("prefix", "prompt", "p-tuning", "ptuning"):
        return "Adapters that add to a model's input (prefix, prompts) are in no weight that could be written into the model"
    return "Others of PEFT's adapters are not known here"
