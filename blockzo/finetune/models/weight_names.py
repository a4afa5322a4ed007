"""Names of weights: what wrappers put into them, and which a model type knows."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from blockzo.finetune.models.weight_files import Entry

WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into names."""
MOST_PREFIXES = 3


def listed(names: Iterable[str], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def names_of(pairs: Iterable[tuple[str, Any]]) -> set[str]:
    return {name for name, _ in pairs}


def plain(name: str, prefix: str) -> str:
    """The name without what wrappers and the base model's prefix put in front."""
    name = WRAPPERS.sub("", name)
    while prefix and name.startswith(f"{prefix}."):
        name = name.removeprefix(f"{prefix}.")
    return name


def _modules(model: nn.Module, prefix: str) -> set[str]:
    return {plain(f"{name}.", prefix).rstrip(".") for name in names_of(model.named_modules())}


def known_elsewhere(model: Any, names: Collection[str]) -> set[str]:
    """Of `names` those in whole modules that this model lacks and another class of its model type has: heads and poolers."""
    here, left, known = _modules(model, model.base_model_prefix), set(names), set()
    for kind in _classes(model.config):
        if not left:
            break
        try:
            with torch.device("meta"):
                other = kind(model.config)
        except Exception:  # a class that this configuration cannot make bears no witness
            continue
        prefix = other.base_model_prefix
        there = {plain(name, prefix) for name in other.state_dict()}
        for name in sorted(left):
            bare = plain(name, prefix)
            if bare in there and bare.rpartition(".")[0] not in here:
                known.add(name)
        left -= known
    return known


def _classes(config: Any) -> list[Any]:
    """Classes of transformers for the model type, the declared one first."""
    import transformers
    from transformers.models.auto import modeling_auto

    names = list(getattr(config, "architectures", None) or [])
    for mapping in sorted(n for n in dir(modeling_auto) if n.startswith("MODEL_") and n.endswith("MAPPING_NAMES")):
        found = getattr(modeling_auto, mapping).get(config.model_type, ())
        names += [found] if isinstance(found, str) else list(found)
    kinds = (getattr(transformers, name, None) for name in dict.fromkeys(names))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, nn.Module)]


def twice_given(model: Any, entries: Mapping[str, Entry]) -> set[str]:
    """Names of a file that would all become the same weight."""
    there, groups = set(model.state_dict()), defaultdict(list)
    for name in entries:
        groups[plain(name, model.base_model_prefix)].append(name)
    return {name for group in groups.values() if len(group) > 1 and not set(group) <= there for name in group}


def renamings(names: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    plain = {name: WRAPPERS.sub("", name) for name in names}
    found = sorted({match for name in names for match in WRAPPERS.findall(name)})
    told = [f"`{match}`" for match in found]
    if found:
        yield " and ".join(told), plain
    for _ in range(MOST_PREFIXES):
        firsts = {name.partition(".")[0] for name in plain.values()}
        if len(firsts) != 1 or any("." not in name for name in plain.values()):
            return
        told.append(f"`{firsts.pop()}.`")
        plain = {name: rest.partition(".")[2] for name, rest in plain.items()}
        yield " and ".join(told), plain
