"""A folder that holds an adapter of PEFT alone: which model it belongs to, and that model with the adapter added."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockzo.finetune.errors import UserError
from blockzo.finetune.models.configuration import read_configuration
from blockzo.finetune.models.heads import PROBE
from blockzo.finetune.models.weight_files import FLOATS, file_entries
from blockzo.journal.outside import shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OF_INPUT = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "ADAPTION_PROMPT")
"""Kinds that no weight could hold."""
ROUNDING = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Difference of logits, as a part of the largest, that comes of weights rounded to a dtype once they hold an adapter."""


def is_adapter(source: str) -> bool:
    """Whether a model's name is that of such a folder."""
    folder = Path(source)
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def base_of(folder: Path) -> str:
    """The model that the adapter was trained on, as its configuration names it.

    Raises:
        UserError: it names none.
    """
    name = read_configuration(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{folder / CONFIG} names {shown(name)} as base model; name the model with --base")
    return name


def with_adapter(model: Any, folder: Path, base: str) -> Any:
    """The model whose weights have what the adapter adds to them, rounded to their dtype; `model` is changed.

    Raises:
        UserError: PEFT is missing, the adapter is of a kind that weights cannot hold, or of another model than `base`.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError:
        raise UserError(f"{folder} holds an adapter of PEFT: pip install peft") from None
    from safetensors.torch import load_file

    kind = read_configuration(folder / CONFIG).get("peft_type")
    if kind in OF_INPUT:
        raise UserError(
            f"{folder} holds an adapter of the kind {kind}, which is part of the input and of no weight; expected LoRA, or "
            "another kind that can be merged"
        )
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; save the adapter with save_pretrained")
    entries = file_entries(folder / WEIGHTS)
    held = _own(entries)
    odd = sorted(name for name, entry in entries.items() if entry.dtype not in FLOATS)
    if odd:
        raise UserError(
            f"{folder / WEIGHTS} holds {odd[0]} as {entries[odd[0]].dtype}; expected floats of 16 bits or more: save it anew"
        )
    # told of the file, since attention may make zeros of NaN
    odd = sorted(name for name, tensor in load_file(folder / WEIGHTS).items() if not bool(torch.isfinite(tensor).all()))
    if odd:
        raise UserError(
            f"{folder / WEIGHTS} holds NaN or infinity in {len(odd)} weights, such as {odd[0]}; it is damaged, or its training "
            "diverged: use another"
        )
    try:
        # what PEFT makes of its names is looked at below
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = PeftModel.from_pretrained(model, str(folder))
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(
            f"{folder} does not fit {base}: {_first_line(error)}. Name its base model with --base"
        ) from error
    wanted = _own(get_peft_model_state_dict(made))
    if held != wanted:
        odd = sorted(held ^ wanted)
        raise UserError(
            f"{folder / WEIGHTS} and {base} do not fit: {len(odd)} names are on one side alone, such as {odd[0]}. Name the base "
            "model of the adapter with --base"
        )
    return _merged(made.eval(), folder, base)


def _own(names: Iterable[str]) -> set[str]:
    """Without the tables of the base model that PEFT saves beside what is added to them."""
    return {name for name in names if ".base_layer." not in name}


@torch.no_grad()
def _merged(made: Any, folder: Path, base: str) -> Any:
    """The weights with what the adapter adds, if that is what the adapter does beside them.

    Raises:
        UserError: it is not.
    """
    ids = torch.arange(3, 3 + PROBE, device=next(made.parameters()).device).unsqueeze(0) % (
        made.config.get_text_config().vocab_size or 4
    )
    told = f"{folder} cannot be added to the weights of {base}"
    try:
        beside = _logits(made, ids)
        model = made.merge_and_unload().eval()
        within = _logits(model, ids)
    except Exception as error:
        raise UserError(f"{told}: {_first_line(error)}. Use it beside them from Python (PeftModel)") from error
    size = float(beside.abs().max())
    if not float((beside - within).abs().max()) <= ROUNDING[within.dtype] * max(size, 1.0):
        raise UserError(
            f"{told}: a small forward gives other logits then. It may lie on a weight that two layers share, such as a head that "
            "is tied to the embedding; use it beside them from Python (PeftModel), or train one for other layers"
        )
    return model


def _logits(model: Any, ids: Tensor) -> Tensor:
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    logits: Tensor = found if isinstance(found, Tensor) else found.logits
    return logits


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
