"""The weight files of a model folder, looked at before anything is built from them: are they there, whole, and of one piece?"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blockzo.finetune.errors import UserError
from blockzo.finetune.stand_ins import check_start

LARGEST_HEADER = 100_000_000
"""Bytes; as in safetensors itself."""
FLOATS = frozenset(("F64", "F32", "F16", "BF16"))
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
SIZES.update(dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1))
TORCH = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
AGAIN = "fetch or copy the file again"


@dataclass(frozen=True)
class Entry:
    """A tensor as its file describes it; `dtype` as safetensors names them."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def weight_entries(folder: Path, config: dict[str, Any]) -> dict[str, Entry]:
    """The tensors of the file or the shards that transformers would read from `folder`.

    Args:
        config: of config.json; its "transformers_weights" may name the file.

    Raises:
        UserError: no weights, a shard that is missing, a file that is empty, cut, a Git LFS pointer or not what its name says.
    """
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds a PEFT adapter (adapter_config.json), not a model alone, and only evaluate takes such: merge it "
            "into its base model (model.merge_and_unload().save_pretrained(FOLDER) in PEFT) and give that folder, or move the "
            "adapter's files away"
        )
    named = config.get("transformers_weights")
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    for name in (str(named), f"{named}.index.json") if named else names:
        path = folder / name
        if path.is_file() or path.is_symlink():
            return _shards(path) if name.endswith(".index.json") else file_entries(path)
    there = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    shards = [name for name in there if "-of-" in name]
    told = f"; the shards {', '.join(shards[:3])} lack their index" if shards else ""
    raise UserError(
        f"{folder} holds no weights: expected {' or '.join(names)}, found {', '.join(there[:6]) or 'no file'}{told}. "
        "Fetch the folder whole, or save the model with save_pretrained"
    )


def unread_shards(folder: Path) -> list[str]:
    """Of one file beside shards the one is read, as by transformers; nobody says which was meant."""
    one, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not (one.is_file() and index.is_file()):
        return []
    return [f"{folder} holds {one.name} and {index.name}; the first is read: move away what is not meant"]


def check_sizes(source: str, config: Any, entries: Mapping[str, Entry]) -> None:
    """Raises UserError where a configuration asks for a model that is larger than its weights: it would be built first."""
    if not entries:
        return
    largest = max((size for entry in entries.values() for size in entry.shape), default=0)
    told = config.get_text_config()
    side = f"has no weight with a side of more than {largest}"
    # below these a model is built, and what its file lacks is told by name
    for name, most, what in (
        ("num_hidden_layers", max(len(entries), 1_000), f"has {len(entries)} weights"),
        ("vocab_size", max(largest, 1 << 20), side),
        ("hidden_size", max(largest, 1 << 16), side),
    ):
        value = getattr(told, name, None)
        if isinstance(value, int) and value > most:
            raise UserError(
                f"{source}: its config.json says {name} {value}, and the file {what}: they belong to different models; fetch "
                "both anew"
            )


def file_entries(path: Path) -> dict[str, Entry]:
    """The tensors of one file, of safetensors or, by the name's end, of torch.save.

    Raises:
        UserError: it is not whole.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(200)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; {AGAIN}") from None
    if not size:
        raise UserError(f"{path} is empty; {AGAIN}")
    check_start(path, start, "weights", AGAIN)
    return _safetensors(path, size) if path.suffix == ".safetensors" else _pickled(path)


def _safetensors(path: Path, size: int) -> dict[str, Entry]:
    def broken(reason: str) -> UserError:
        return UserError(f"{path} is not a whole safetensors file: {reason}; {AGAIN}")

    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            raise broken(f"{size} bytes, of which the header alone should be {length}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        entries, end = {}, 0
        for name, told in header.items():
            if name == "__metadata__":
                continue
            first, last = told["data_offsets"]
            shape = tuple(int(n) for n in told["shape"])
            if not 0 <= first <= last or min(shape, default=0) < 0:
                raise ValueError(name)
            width = SIZES.get(told["dtype"])
            if width is not None and last - first != width * math.prod(shape):
                raise broken(f"{name} of shape {list(shape)} takes {last - first} bytes")
            entries[name], end = Entry(str(told["dtype"]), shape, path), max(end, last)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise broken("its header cannot be read") from None
    if 8 + length + end != size:
        raise broken(
            f"{size} bytes where the header says {8 + length + end}" + (" (cut)" if size < 8 + length + end else "")
        )
    return entries


def _pickled(path: Path) -> dict[str, Entry]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # data alone: a pickle may run any program
            found = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        # torch's own sentence tells how to run what is in the pickle
        reason = "" if "weights_only" in str(error) or "Weights only" in str(error) else f" ({type(error).__name__})"
        raise UserError(
            f"{path} cannot be read as weights alone{reason}. It is cut, or a pickle that holds more than tensors, which is "
            "never run; fetch the .safetensors file of the model, or save its state_dict again"
        ) from None
    if isinstance(found, dict) and not all(isinstance(name, str) for name in found):
        odd = next(name for name in found if not isinstance(name, str))
        raise UserError(f"{path} has the name {odd!r} for a weight; expected texts: save model.state_dict() alone")
    if not isinstance(found, dict) or not all(isinstance(t, torch.Tensor) for t in found.values()):
        odd = (
            next((k for k, v in found.items() if not isinstance(v, torch.Tensor)), "")
            if isinstance(found, dict)
            else ""
        )
        raise UserError(
            f"{path} is not a state_dict (names and tensors{f'; {odd!r} is none' if odd else ''}); save model.state_dict() alone"
        )
    odd = next((name for name, t in found.items() if t.layout != torch.strided), None)
    if odd is not None:
        raise UserError(
            f"{path} has {odd!r} as a {found[odd].layout} tensor; expected dense ones: save it with .to_dense()"
        )
    return {str(k): Entry(TORCH.get(t.dtype, str(t.dtype)), tuple(t.shape), path) for k, t in found.items()}


def _shards(index: Path) -> dict[str, Entry]:
    try:
        told = json.loads(index.read_text(encoding="utf-8"))
        places = told["weight_map"]
        files = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{index} is not an index of shards (no weight_map can be read); {AGAIN}") from None
    if not files:
        raise UserError(f"{index} is not an index of shards (its weight_map is empty); {AGAIN}")
    if not isinstance(told.get("metadata"), dict):
        raise UserError(f'{index} has no "metadata", which transformers reads; add "metadata": {{}} to it, or {AGAIN}')
    away = [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]
    if away:
        raise UserError(
            f"{index.name} names {away[0]}, which is not inside of {index.parent}; move the shards into it, and name them by "
            "file name alone"
        )
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.parent} lacks {len(missing)} of {len(files)} files that {index.name} names: {', '.join(missing[:4])}; "
            "fetch them too"
        )
    entries: dict[str, Entry] = {}
    for name in files:
        for key, entry in file_entries(index.parent / name).items():
            if key in entries:
                raise UserError(
                    f"{key} is in {entries[key].file.name} and in {name}: shards of different files; fetch the folder anew"
                )
            entries[key] = entry
    for key, name in places.items():
        if key not in entries or entries[key].file != index.parent / name:
            raise UserError(
                f"{index.name} says that {key} is in {name}, which does not hold it: they belong to different files; fetch the "
                "folder anew"
            )
    return entries
