"""LoRA and DoRA (arXiv 2106.09685, 2402.09353; through PEFT): first weights from the run's seed, saved merged and apart."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockzo.finetune.errors import UserError
from blockzo.finetune.models.lora_options import LoraOptions
from blockzo.finetune.models.quantized_base import plain_weight
from blockzo.finetune.models.seeded import seeded

ADAPTER = "adapter"
"""The folder of the adapter alone, inside the model's."""
NAME = "default"


def add_lora(model: Any, options: LoraOptions, seed: int, source: str) -> None:
    """Wraps linear layers; what they add is trainable, all else is frozen.

    Raises:
        UserError: PEFT is missing, or the model has no layers of these names.
    """
    config = _config(options)
    from peft import inject_adapter_in_model

    try:
        with seeded(seed):
            inject_adapter_in_model(config, model)
    except ValueError as error:
        raise UserError(
            f"--peft cannot be put on {source}: {error}. Name the last parts of its linear layers: targets=q_proj+v_proj"
        ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    model.eval()


def _config(options: LoraOptions) -> Any:
    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError("--peft needs PEFT: pip install peft") from None
    # scripts and saved adapters of PEFT read the same
    return LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        target_modules=list(options.targets) or None,
        lora_dropout=0.0,
        use_dora=options.kind == "dora",
    )


@torch.no_grad()
def merged(model: Any) -> dict[str, Tensor]:
    """State of the model without an adapter, in which each wrapped weight has what its adapter adds, and quantised ones are what
    they stand for; the model is not changed."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    held = {name: plain_weight(module) for name, module in model.named_modules()}
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    state: dict[str, Tensor] = {}
    for name, plain in held.items():
        if plain is not None:
            owner = name.removesuffix(".base_layer")
            # a quantised base cannot hold what is added
            total = plain + layers[owner].get_delta_weight(NAME) if owner in layers else plain
            state[f"{owner}.weight"] = total.to(dtype)
    for name, tensor in model.state_dict().items():
        if ".lora_" in name or _of_a_quantised(name, held):
            continue
        owner = name.rpartition(".base_layer.")[0]
        if owner in layers and name == f"{owner}.base_layer.weight":
            # PEFT's own way, on a copy: what lies in the model stays as it is
            layer = copy.deepcopy(layers[owner])
            layer.merge(adapter_names=[NAME])
            tensor = layer.get_base_layer().weight
        state[name.replace(".base_layer.", ".")] = tensor
    return state


def _of_a_quantised(name: str, held: Mapping[str, Tensor | None]) -> bool:
    """Is it the weight of a quantised layer, or something that hangs on it? Its bias is not."""
    parts = name.split(".")
    owners = (".".join(parts[:end]) for end in range(len(parts)))
    owner = next((place for place in owners if held.get(place) is not None), None)
    return owner is not None and name != f"{owner}.bias"


def save_adapter(model: Any, options: LoraOptions, base: str, folder: Path) -> None:
    """As PEFT writes it: `PeftModel.from_pretrained(base, folder)` loads it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    layers = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    config = _config(replace(options, targets=tuple(sorted(layers))))
    config.base_model_name_or_path, config.inference_mode, config.task_type = base, True, "CAUSAL_LM"
    config.save_pretrained(folder)
    own = {name: t.detach().contiguous().cpu() for name, t in model.named_parameters() if ".lora_" in name}
    save_file(
        {_as_saved(name): tensor for name, tensor in own.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt", "blockzo": json.dumps(options.as_dict())},
    )


def _as_saved(name: str) -> str:
    """PEFT's name in a file: of a layer's part, without the adapter's; lengths of rows and tables' parts stand for themselves."""
    plain = name.removesuffix(".weight").removesuffix(f".{NAME}")
    bare = plain.endswith(("lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B"))
    return f"base_model.model.{plain}" + ("" if bare else ".weight")
