"""A folder that holds an adapter of PEFT alone: which model it belongs to, and that model with the adapter added."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from blockzo.finetune.errors import UserError
from blockzo.finetune.models.configuration import read_configuration
from blockzo.finetune.models.weight_files import file_entries
from blockzo.journal.outside import shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OF_INPUT = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "ADAPTION_PROMPT")
"""Kinds that no weight could hold."""


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
    kind = read_configuration(folder / CONFIG).get("peft_type")
    if kind in OF_INPUT:
        raise UserError(
            f"{folder} holds an adapter of the kind {kind}, which is part of the input and of no weight; expected LoRA, or "
            "another kind that can be merged"
        )
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; save the adapter with save_pretrained")
    held = set(file_entries(folder / WEIGHTS))
    try:
        # what PEFT makes of its names is looked at below
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = PeftModel.from_pretrained(model, str(folder))
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(
            f"{folder} does not fit {base}: {_first_line(error)}. Name its base model with --base"
        ) from error
    wanted = set(get_peft_model_state_dict(made))
    if held != wanted:
        odd = sorted(held ^ wanted)
        raise UserError(
            f"{folder / WEIGHTS} and {base} do not fit: {len(odd)} names are on one side alone, such as {odd[0]}. Name the base "
            "model of the adapter with --base"
        )
    return made.merge_and_unload().eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
