"""Whether the weights that a model was built with are those of its file.

A zeroth-order step would train on a weight that is missing from its file, and so was drawn at random, without a word. What is
harmless is told by principle, not by name: weights tied to others and buffers that the model computes (transformers knows its
own), parts that another class of the same model type has and this task does not run, and parts of which nothing is in the file
and nothing reaches the task's output (shown by filling them with NaN).
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from blockzo.finetune.errors import UserError
from blockzo.finetune.models.weight_files import FLOATS, Entry
from blockzo.finetune.models.weight_names import known_elsewhere, listed, names_of, plain, twice_given

MASKED_BIAS = ".masked_bias"
Build = Callable[..., tuple[Any, dict[str, Any]]]


class Unfit(UserError):
    """`wrong` counts the names that do not fit."""

    def __init__(self, message: str, wrong: int) -> None:
        super().__init__(message)
        self.wrong = wrong


class Headless(Unfit):
    """All that is missing is the whole head: the file holds the base model alone, as sentence-transformers saves it."""


def built(build: Build, source: str | None, seed: int, **options: Any) -> tuple[Any, dict[str, Any]]:
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
    unexpected -= names_of(model.named_buffers())
    # a number that old GPT-2s, GPT-Js and GPT-Neos keep for their masks
    unexpected -= {name for name in unexpected if name.endswith(MASKED_BIAS) and _is_number(name, entries)}
    shapes = {name: (tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"]}
    unread = _unread_parts(model, missing) if missing else set()
    foreign = unexpected - known_elsewhere(model, unexpected) if unexpected else set()
    missing -= unread
    integers = _integers(model, entries)
    twice = twice_given(model, entries)
    told = [
        *([f"{len(missing)} missing from the file: {listed(missing)}"] if missing else []),
        *([f"{len(foreign)} that {type(model).__name__} does not have: {listed(foreign)}"] if foreign else []),
        *(
            f"{n} has the shape {list(a)}, the configuration wants {list(b)}"
            for n, (a, b) in sorted(shapes.items())[:3]
        ),
        *([f"{len(integers)} that hold {_kinds(integers, entries)}: {listed(integers)}"] if integers else []),
        *([f"given twice under two names: {listed(twice)}"] if twice else []),
        *(str(text) for text in info["error_msgs"]),
    ]
    if told:
        number = len(missing) + len(foreign) + len(shapes) + len(integers) + len(twice)
        headless = len(told) == 1 and bool(missing) and _is_whole_head(model, missing)
        raise (Headless if headless else Unfit)(
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


def _is_whole_head(model: Any, missing: set[str]) -> bool:
    """Whether these are all weights outside of the base model; those tied to one inside are not the head's own."""
    base = getattr(model, model.base_model_prefix, None)
    if not isinstance(base, nn.Module) or base is model:
        return False
    weights = {name: id(t) for name, t in model.state_dict(keep_vars=True).items()}
    inside = {id(t) for t in base.state_dict(keep_vars=True).values()}
    return {weights[name] for name in missing} == set(weights.values()) - inside


def _is_number(name: str, entries: Mapping[str, Entry]) -> bool:
    found = next((entry for key, entry in entries.items() if key.endswith(name)), None)
    return found is None or math.prod(found.shape) == 1


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


def _kinds(names: set[str], entries: Mapping[str, Entry]) -> str:
    return "whole or packed numbers (" + ", ".join(sorted({entries[name].dtype for name in names})) + ")"


def _integers(model: Any, entries: Mapping[str, Entry]) -> set[str]:
    """Weights whose file holds whole numbers (or a packed kind) for them; a cast would read these as values.

    Only what has read the model knows better: a configuration may name a quantisation that transformers does not know.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return set()
    prefix = model.base_model_prefix
    weights = {plain(name, prefix) for name, t in model.named_parameters() if t.is_floating_point()}
    return {name for name, entry in entries.items() if entry.dtype not in FLOATS and plain(name, prefix) in weights}
