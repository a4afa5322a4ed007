"""Weights that fit their model, or an error that names them: every model the commands train or score comes through here.

A zeroth-order step would train on a weight that is missing from its file, and so was drawn at random, without a word. What is
harmless is told by principle, not by name: weights tied to others and buffers that the model computes (transformers knows its
own), parts that another class of the same model type has and this task does not run, and parts of which nothing is in the file
and nothing reaches the task's output (shown by filling them with NaN).
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blockzo.finetune.errors import UserError
from blockzo.finetune.models.weight_files import FLOATS, Entry

WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into names."""
MOST_PREFIXES = 3
Build = Callable[..., tuple[Any, dict[str, Any]]]


class Unfit(UserError):
    """`wrong` counts the names that do not fit."""

    def __init__(self, message: str, wrong: int) -> None:
        super().__init__(message)
        self.wrong = wrong


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
        model, info = _built(auto.from_pretrained, source, seed, **options)
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
    return model, [*notes, *_untied(source, model)]


def _built(build: Build, source: str | None, seed: int, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Model and loading info; sizes that differ are left to the judge, and what the loader would only log is in the error."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), _told() as lines:
        warnings.simplefilter("ignore")
        torch.manual_seed(seed % (1 << 63))
        try:
            return build(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
        except RuntimeError as error:
            keys = [line for line in lines if "CONVERSION" in line]
            if not keys:
                raise
            named = ", ".join(dict.fromkeys(line.split("|")[0].strip() for line in keys))
            raise Unfit(
                f"the weights {named} of {source} cannot be put together: some parts are missing or differ in shape", 1
            ) from error


@contextmanager
def _told() -> Iterator[list[str]]:
    """Lines that transformers logs while it loads, without colours, which are otherwise not shown."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.extend(re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()).splitlines())

    logger, handler = logging.getLogger("transformers.modeling_utils"), Keep()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def judged(source: str, model: Any, info: Mapping[str, Any], entries: Mapping[str, Entry]) -> list[str]:
    """What to say of a model that was built as `info` tells.

    Raises:
        Unfit: it has weights that no file gave it, or a file has weights that this model type does not know.
    """
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    unexpected -= _names(model.named_buffers())
    shapes = {name: (tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"]}
    unread = _unread_parts(model, missing) if missing else set()
    foreign = unexpected - _known_elsewhere(model, unexpected) if unexpected else set()
    missing -= unread
    integers = _integers(model, entries)
    twice = _twice(model, entries)
    told = [
        *([f"{len(missing)} missing from the file: {listed(missing)}"] if missing else []),
        *([f"{len(foreign)} that {type(model).__name__} does not have: {listed(foreign)}"] if foreign else []),
        *(
            f"{n} has the shape {list(a)}, the configuration wants {list(b)}"
            for n, (a, b) in sorted(shapes.items())[:3]
        ),
        *([f"{len(integers)} that hold whole numbers: {listed(integers)}"] if integers else []),
        *([f"given twice under two names: {listed(twice)}"] if twice else []),
        *(str(text) for text in info["error_msgs"]),
    ]
    if told:
        number = len(missing) + len(foreign) + len(shapes) + len(integers) + len(twice)
        raise Unfit(
            f"the weights of {source} are not those of its configuration ({type(model).__name__}): {'; '.join(told)}.\n"
            "Nothing is trained, since such weights would be random numbers. Give the folder that save_pretrained wrote, correct "
            "config.json, or save the state_dict of the model itself, not of what wraps it",
            number,
        )
    notes = []
    if unread:
        notes.append(f"{listed(unread)}: not in the file and read by no loss; filled with zeros")
    if unexpected - foreign:
        notes.append(f"parts of the file that this task does not use are left out: {listed(unexpected - foreign)}")
    return notes


def listed(names: Iterable[str], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def _names(pairs: Iterable[tuple[str, Any]]) -> set[str]:
    return {name for name, _ in pairs}


def _plain(name: str, prefix: str) -> str:
    """The name without what wrappers and the base model's prefix put in front."""
    name = WRAPPERS.sub("", name)
    while prefix and name.startswith(f"{prefix}."):
        name = name.removeprefix(f"{prefix}.")
    return name


def _modules(model: nn.Module, prefix: str) -> set[str]:
    return {_plain(f"{name}.", prefix).rstrip(".") for name in _names(model.named_modules())}


def _known_elsewhere(model: Any, names: Collection[str]) -> set[str]:
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
        there = {_plain(name, prefix) for name in other.state_dict()}
        for name in sorted(left):
            plain = _plain(name, prefix)
            if plain in there and plain.rpartition(".")[0] not in here:
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


@torch.no_grad()
def _unread_parts(model: Any, missing: set[str]) -> set[str]:
    """Missing weights of whole parts that do not reach the output; they are set to zero, the same at every load.

    Only where the model is an encoder without a head: its first output is the hidden states.
    """
    base = getattr(model, model.base_model_prefix, None)
    if isinstance(base, nn.Module) and base is not model:
        return set()
    weights = model.state_dict()
    found: set[str] = set()
    for part in {name.split(".")[0] for name in missing}:
        own = {name for name in weights if name.startswith(f"{part}.")}
        if own and own <= missing and all(weights[name].is_floating_point() for name in own):
            found |= own
    if not found:
        return set()
    for name in found:
        weights[name].fill_(float("nan"))
    try:
        ids = torch.arange(3, 8).unsqueeze(0) % model.config.vocab_size
        hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
        clean = bool(torch.isfinite(hidden).all())
    except Exception:  # cannot be run on token ids: then nothing is shown
        clean = False
    for name in found:
        weights[name].zero_()
    return found if clean else set()


def _integers(model: Any, entries: Mapping[str, Entry]) -> set[str]:
    """Weights whose file holds whole numbers (or a packed kind) for them; a cast would read these as values."""
    if getattr(model.config, "quantization_config", None) is not None:
        return set()
    prefix = model.base_model_prefix
    weights = {_plain(name, prefix) for name, t in model.named_parameters() if t.is_floating_point()}
    return {name for name, entry in entries.items() if entry.dtype not in FLOATS and _plain(name, prefix) in weights}


def _twice(model: Any, entries: Mapping[str, Entry]) -> set[str]:
    """Names of a file that would all become the same weight."""
    there, groups = set(model.state_dict()), defaultdict(list)
    for name in entries:
        groups[_plain(name, model.base_model_prefix)].append(name)
    return {name for group in groups.values() if len(group) > 1 and not set(group) <= there for name in group}


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
    for told, names in _renamings(list(entries)):
        same = [name for name, count in _counts(names.values()).items() if count > 1]
        if same:
            continue
        state = {names[name]: tensor for name, tensor in _state(entries).items()}
        renamed = {names[name]: entry for name, entry in entries.items()}
        others = {k: v for k, v in options.items() if k not in ("config", "trust_remote_code")}
        try:
            found, info = _built(kind.from_pretrained, None, seed, config=config, state_dict=state, **others)
            notes = judged(source, found, info, renamed)
        except Unfit as error:
            least = min(least, error, key=lambda e: e.wrong)
            continue
        _generation(found, source)
        return found, [f"{source}: the names of the weights begin with or hold {told}; it was taken off", *notes]
    raise least


def _counts(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return counts


def _renamings(names: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
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
