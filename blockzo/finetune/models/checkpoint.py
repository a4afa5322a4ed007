"""Weights that fit their model, or an error that names them: every model the commands train or score comes through here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blockzo.finetune.errors import UserError
from blockzo.finetune.models.judge import Unfit, built, judged
from blockzo.finetune.models.weight_files import Entry
from blockzo.finetune.models.weight_names import listed, renamings


def fitted(
    source: str, auto: Any, options: Mapping[str, Any], entries: Mapping[str, Entry], config: Any, seed: int
) -> tuple[Any, list[str]]:
    """`auto.from_pretrained(source, **options)`, in evaluation mode, and what there is to say of it.

    Args:
        entries: what the weight files hold, empty where that is not known (a hub name, GGUF).
        seed: of whatever the model draws while it is built, so that two loads are the same.

    Raises:
        UserError: names the weights that are missing, unexpected, of another shape or kind, or not finite.
    """

    model: Any = None
    wrong: Unfit | None = None
    notes: list[str] = []
    try:
        model, info = built(auto.from_pretrained, source, seed, **options)
        notes = judged(source, model, info, entries)
    except Unfit as error:
        wrong = error
    if wrong is not None:
        if model is None or not entries:
            raise wrong
        # the first model goes before the second comes
        kind, model = type(model), None
        model, notes = _mended(source, kind, options, entries, config, seed, wrong)
    model.eval()
    _check_values(source, model, entries)
    _check_tables(source, model)
    return model, [*notes, *_untied(source, model), *_all_zero(source, model)]


def _mended(
    source: str,
    kind: Any,
    options: Mapping[str, Any],
    entries: Mapping[str, Entry],
    config: Any,
    seed: int,
    wrong: Unfit,
) -> tuple[Any, list[str]]:
    """The model again, with a plain prefix taken off the names of its weights.

    Raises:
        Unfit: no prefix explains what does not fit; the error is the one that says least.
    """
    least = wrong
    for told, names in renamings(list(entries)):
        if max(Counter(names.values()).values(), default=0) > 1:
            continue
        state = {names[name]: tensor for name, tensor in _state(entries).items()}
        renamed = {names[name]: entry for name, entry in entries.items()}
        others = {k: v for k, v in options.items() if k not in ("config", "trust_remote_code")}
        try:
            found, info = built(kind.from_pretrained, None, seed, config=config, state_dict=state, **others)
            notes = judged(source, found, info, renamed)
        except Unfit as error:
            least = min(least, error, key=lambda e: e.wrong)
            continue
        _generation(found, source)
        return found, [f"{source}: the names of the weights begin with or hold {told}; it was taken off", *notes]
    raise least


def _state(entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for file in {entry.file for entry in entries.values()}:
        state.update(
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    return state


def _generation(model: Any, source: str) -> None:
    """What from_pretrained reads beside the weights."""
    model.config.name_or_path = model.name_or_path = source
    if model.can_generate() and (Path(source) / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(source)


def _check_values(source: str, model: nn.Module, entries: Mapping[str, Entry]) -> None:
    buffers = set(model.state_dict())
    loaded = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in buffers)]
    # least and largest are NaN where anything is; no copy is made
    bad = [name for name, t in loaded if t.is_floating_point() and t.numel() and not _finite(t)]
    if bad:
        dtype = next(t.dtype for name, t in loaded if name == bad[0])
        wider = "" if dtype != torch.float16 else " (or float16 cannot hold them: try --dtype float32 or bfloat16)"
        raise UserError(
            f"{len(bad)} weights of {source} hold NaN or infinity{wider}: {listed(bad)}. The file is damaged, or the training "
            "that made it diverged; use another checkpoint"
        )


def _check_tables(source: str, model: nn.Module) -> None:
    """What a model computes of its configuration alone. Masks may hold minus infinity; attention may turn NaN into zeros."""
    stored = set(model.state_dict())
    for name, t in model.named_buffers():
        if name in stored or not t.is_floating_point() or not t.numel():
            continue
        low, high = (float(bound) for bound in torch.aminmax(t))
        if math.isnan(low) or high == math.inf:
            raise UserError(
                f"{source}: {name}, which the model computes of its config.json, is not finite; correct the numbers there (of "
                "rotary tables: rope_theta, and factor in rope_parameters or rope_scaling)"
            )


def _all_zero(source: str, model: nn.Module) -> list[str]:
    """A download that was cut may leave a file of its full length, with zeros for what is missing."""
    found = [name for name, t in model.named_parameters() if t.dim() > 1 and t.numel() and not bool(t.detach().any())]
    if not found:
        return []
    return [f"{source}: all numbers of {listed(found)} are 0; where they were trained, fetch the file again"]


def _finite(tensor: Tensor) -> bool:
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _untied(source: str, model: Any) -> list[str]:
    if not getattr(model.config, "tie_word_embeddings", False):
        return []
    inner, outer = model.get_input_embeddings(), getattr(model, "get_output_embeddings", lambda: None)()
    one, other = getattr(inner, "weight", None), getattr(outer, "weight", None)
    if one is None or other is None or one is other or one.shape != other.shape:
        return []
    return [
        f"{source}: the configuration ties the embedding to the head, but the file has different weights for them; both are used "
        "as they are in the file, untied"
    ]
