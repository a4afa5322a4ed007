"""Loading a model the way its name asks for, and saving it so that `from_pretrained` loads it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blockzo.finetune.data.tasks import find_written_task
from blockzo.finetune.errors import UserError
from blockzo.finetune.models.built_in import BUILT_IN
from blockzo.finetune.models.checkpoint import fitted
from blockzo.finetune.models.configuration import check_epsilons, read_configuration
from blockzo.finetune.models.devices import put
from blockzo.finetune.models.gguf import gguf_file, read_gguf
from blockzo.finetune.models.heads import HEAD_FILE, HeadedEncoder, check_forward, trained_classifier
from blockzo.finetune.models.judge import Headless
from blockzo.finetune.models.lora import ADAPTER, add_lora, merged, save_adapter
from blockzo.finetune.models.lora_options import LoraOptions, parse_adapter
from blockzo.finetune.models.packages import fetch
from blockzo.finetune.models.quantized_base import quantize_base
from blockzo.finetune.models.trainable import freeze_others
from blockzo.finetune.models.transformers_library import TORCH_DTYPES, attempt, quiet_transformers
from blockzo.finetune.models.weight_files import (
    FLOATS,
    check_sizes,
    file_entries,
    unread_shards,
    weight_entries,
)


@dataclass
class Loaded:
    """A model in evaluation mode; `kind` is "causal", "masked" or "head"."""

    model: Any
    tokenizer: Any
    kind: str
    source: str
    limit: int
    """Most tokens that the model takes."""
    notes: list[str] = field(default_factory=list)
    """What was mended or left out."""
    adapter: LoraOptions | None = None
    """What is trained in place of the weights."""
    quantized: str | None = None
    """How the frozen linear layers are held."""

    @property
    def device(self) -> torch.device:
        """Of its weights."""
        found: torch.device = next(self.model.parameters()).device
        return found


def resolve(name: str, fallback: str | None, say: Callable[[str], None]) -> str:
    """Folder, file or hub name of a model; built-in models are fetched.

    Args:
        fallback: another model for a demonstration whose built-in model cannot be had; the change is announced.
    """
    if name.lower() not in BUILT_IN:
        return name
    try:
        return str(fetch(name.lower(), say))
    except UserError as error:
        if fallback is None:
            raise
        say(f"{error}\nusing the fallback model {fallback} instead: figures of the documentation do not hold for it")
        return resolve(fallback, None, say)


def load(
    source: str,
    dtype: str,
    head: str = "auto",
    classes: int = 0,
    seed: int = 0,
    task: str = "classification",
    labels: Sequence[str] = (),
    trust_remote_code: bool = False,
    device: str | torch.device = "cpu",
    peft: str | None = None,
    trainable: str | None = None,
    quantize: str | None = None,
) -> Loaded:
    """Loads a folder, a GGUF file or folder, or a hub name. Two loads give the same bits.

    Args:
        head: "auto" (by the model's architecture), "words" (its language-model head) or "mean" (mean pooling and a linear
            layer of `classes` outputs, made from `seed` unless the folder holds one).
        labels: of the task, in the order of its classes; a trained classifier that names the same labels gets this order.
        trust_remote_code: run Python code that comes with the model.
        device: where it runs.
        peft: an adapter to train in place of the weights, as `--peft` says it; its first weights come from `seed`.
        trainable: patterns of names of the parameters to train; all others are frozen.
        quantize: form in which frozen linear layers are held (`dtypes.QUANTIZED`).

    Raises:
        UserError: it cannot be found or loaded, its weights are not those of its configuration, or it has no head that the
            task can use.
    """
    transformers = quiet_transformers()
    if dtype not in TORCH_DTYPES:
        raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(TORCH_DTYPES)}")
    gguf = gguf_file(Path(source))
    if gguf is not None:
        model, tokenizer, notes = read_gguf(gguf, dtype, seed)
        kind = "causal"
    else:
        entries = weight_entries(Path(source), _raw_config(Path(source))) if Path(source).is_dir() else {}
        trust = {"trust_remote_code": trust_remote_code}
        config = attempt(source, lambda: transformers.AutoConfig.from_pretrained(source, **trust))
        # a configuration may hold what only its own kind of model makes sense of
        attempt(source, partial(check_sizes, source, config, entries))
        attempt(source, partial(check_epsilons, source, config))
        kind = _kind(config, source, head)
        if (task == "lm" or find_written_task(task) is not None) and kind != "causal":
            raise UserError(f"{source} is not a causal model; --task {task} needs one that predicts the next token")
        tokenizer = attempt(source, lambda: transformers.AutoTokenizer.from_pretrained(source, **trust))

        def weights_of(kind: str) -> tuple[Any, list[str]]:
            auto, options = _how(transformers, kind, config)
            options.update(dtype=TORCH_DTYPES[dtype], config=config, **trust)
            return attempt(source, lambda: fitted(source, auto, options, entries, config, seed))

        try:
            model, notes = weights_of(kind)
        except Headless:
            if kind != "masked" or head != "auto":
                raise
            kind = "head"
            model, notes = weights_of(kind)
            notes = [
                f"{source} names a masked model and holds its encoder alone: mean pooling and a linear layer",
                *notes,
            ]
        notes = [*unread_shards(Path(source)), *_another_class(transformers, source, config), *notes]
    limit = _limit(source, model, tokenizer)
    _check_tokenizer(source, model, tokenizer)
    notes += _much_smaller(source, model, tokenizer)
    if kind == "head":
        model = _with_head(model, source, classes, seed)
    elif kind == "classifier":
        model, told = trained_classifier(model, tokenizer, source, classes, labels)
        kind, notes = "head", [*notes, *told]
    model.eval()
    for name, parameter in model.named_parameters():
        # an encoder's pooler, where it cannot be left out, is read by no loss here
        parameter.requires_grad_(not (isinstance(model, HeadedEncoder) and ".pooler." in name))
    check_forward(source, model, kind)
    adapter = None if peft is None else parse_adapter(peft)
    if adapter is not None:
        add_lora(model, adapter, seed, source)
    if trainable is not None:
        freeze_others(model, trainable)
    if quantize is not None:
        if isinstance(model, HeadedEncoder):
            raise UserError("--quantize goes with models that have a head of their own; leave --head mean out")
        quantize_base(model, quantize, source)
    put(model, torch.device(device), source, weight_bytes(model))
    return Loaded(model, tokenizer, kind, source, limit, notes, adapter, quantize)


def _raw_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        if adapter:
            return {}
        raise UserError(
            f"the model {str(folder)!r} cannot be loaded (a folder): it has no config.json. Expected a folder with config.json, "
            "tokenizer files and weights, as save_pretrained writes it, or with one .gguf file"
        )
    return read_configuration(path)


def _kind(config: Any, source: str, head: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    if head not in ("auto", "words", "mean"):
        raise UserError(f"head is {head!r}; expected auto, words or mean")
    name = (getattr(config, "architectures", None) or [""])[0]
    if not isinstance(name, str):
        raise UserError(
            f"{source}: architectures in its config.json begins with {name!r}; expected the name of a class, such as "
            "LlamaForCausalLM"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{source} ({name or config.model_type}) is an encoder-decoder, which the command line does not train; give a causal "
            'or masked model or an encoder, or use the Python API: bz.Blocks(model, 0.5, layers="...") and bz.ZO'
        )
    if head == "mean" or (head == "auto" and (Path(source) / HEAD_FILE).is_file()):
        return "head"
    if name.endswith("ForMaskedLM") or (
        head == "words" and name.endswith("ForPreTraining") and config.model_type in MASKED
    ):
        return "masked"
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    if name.endswith("ForSequenceClassification") and head == "auto":
        return "classifier"
    if config.model_type in CAUSAL and config.model_type not in MASKED:
        return "causal"
    if head == "words":
        raise UserError(f"{source} ({name or config.model_type}) has no language-model head; use --head mean")
    return "head"


def _how(transformers: Any, kind: str, config: Any) -> tuple[Any, dict[str, Any]]:
    """The class that reads a model of this kind, and options of its own."""
    if kind == "causal":
        return transformers.AutoModelForCausalLM, {}
    if kind == "masked":
        return transformers.AutoModelForMaskedLM, {}
    if kind == "classifier":
        return transformers.AutoModelForSequenceClassification, {}
    try:
        known = set(inspect.signature(transformers.AutoModel._model_mapping[type(config)].__init__).parameters)
    except (KeyError, AttributeError):
        known = set()
    # a pooler would be weights that no loss reads
    return transformers.AutoModel, {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def _with_head(encoder: Any, source: str, classes: int, seed: int) -> HeadedEncoder:
    from safetensors.torch import load_file

    saved = Path(source) / HEAD_FILE
    if not saved.is_file():
        return HeadedEncoder(encoder, classes, seed)
    model = HeadedEncoder(encoder, classes, seed)
    entries = file_entries(saved)
    shapes = {name: entry.shape for name, entry in entries.items()}
    wanted = {name: tuple(t.shape) for name, t in model.head.state_dict().items()}
    if set(shapes) == set(wanted) and shapes != wanted and len(shapes["weight"]) == 2:
        found, width = shapes["weight"]
        if (found, width) == (shapes["bias"] + (width,) if len(shapes["bias"]) == 1 else ()) and width == wanted[
            "weight"
        ][1]:
            raise UserError(f"{saved} has {found} classes, the task has {classes}; use the task it was trained for")
    if shapes != wanted or any(entry.dtype not in FLOATS for entry in entries.values()):
        told = ", ".join(f"{n} {list(e.shape)} {e.dtype}" for n, e in sorted(entries.items())) or "nothing"
        raise UserError(
            f"{saved} holds {told}; expected weight {list(wanted['weight'])} and bias {list(wanted['bias'])} of a float dtype. "
            "Give the folder as blockzo wrote it"
        )
    tensors = load_file(saved)
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise UserError(f"{saved} holds NaN or infinity; use another checkpoint")
    model.head.load_state_dict(tensors)
    return model


def _check_tokenizer(source: str, model: Any, tokenizer: Any) -> None:
    """Raises UserError where the tokenizer is empty or makes ids that the embedding does not have."""
    try:
        ids = tokenizer.get_vocab().values()
        most = max(ids, default=-1)
    except Exception:  # a tokenizer of remote code may have no table
        return
    special = set(tokenizer.all_special_ids)
    if len(special) >= len(ids) or not tokenizer("it was a good film", add_special_tokens=False)["input_ids"]:
        raise UserError(
            f"{source} has no tokenizer, or one without a vocabulary; put tokenizer.json (or vocab files) and "
            "tokenizer_config.json of the model into its folder"
        )
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    if embedding is not None and most >= embedding.shape[0]:
        raise UserError(
            f"the tokenizer of {source} makes token ids up to {most}, the embedding has {embedding.shape[0]} rows: it belongs to "
            "another model, or tokens were added to it. Give the model's own tokenizer, or resize the model first "
            "(model.resize_token_embeddings(len(tokenizer)))"
        )


SMALLER = 0.5
"""Share of the rows of an embedding that a tokenizer of its own has at least; tables are padded, by a few rows in a hundred."""


def _much_smaller(source: str, model: Any, tokenizer: Any) -> list[str]:
    rows = getattr(getattr(model.get_input_embeddings(), "weight", None), "shape", (0,))[0]
    try:
        count = len(tokenizer)
    except Exception:  # one of remote code
        return []
    if not 0 < count < SMALLER * rows:
        return []
    return [
        f"the tokenizer of {source} has {count} tokens and the embedding {rows} rows: is it another model's? Figures of text "
        "that is taken apart in another way mean nothing"
    ]


def _another_class(transformers: Any, source: str, config: Any) -> list[str]:
    """A configuration that names a class of another type of model, of which transformers takes no notice."""
    name = (getattr(config, "architectures", None) or [""])[0]
    named = getattr(getattr(transformers, str(name), None), "config_class", None)
    other = getattr(named, "model_type", None)
    if not isinstance(named, type) or not other or other == config.model_type or isinstance(config, named):
        return []
    return [
        f"config.json of {source} has the model_type {config.model_type!r} and names {name}, a class of {other!r}: it is read as "
        f"{config.model_type!r}; correct the file if the weights are of the other"
    ]


def _limit(source: str, model: Any, tokenizer: Any) -> int:
    """Most tokens of a row: of the configuration, of tables of positions that begin after a padding id, of the tokenizer."""
    config = model.config
    told = getattr(config, "max_position_embeddings", None)
    most = tokenizer.model_max_length
    for name, value in (("model_max_length of the tokenizer", most), ("max_position_embeddings of config.json", told)):
        # XLNet says -1 where there is no limit
        if value is not None and value != -1 and (isinstance(value, (bool, str)) or not value > 0):
            raise UserError(f"{source}: the {name} is {value!r}; expected a positive number, or leave it out")
    limit = told if isinstance(told, int) and told > 0 else 1 << 20
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Embedding)
            and "position" in name.rpartition(".")[2]
            and module.padding_idx is not None
        ):
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    return min(limit, int(min(most, 1 << 20)))


def save(loaded: Loaded, folder: Path) -> None:
    """Weights in safetensors, configuration and tokenizer: `from_pretrained(folder)` loads them. With an adapter, they hold
    it, and the folder `adapter` in there has it alone.
    """
    if loaded.adapter is None and loaded.quantized is None:
        loaded.model.save_pretrained(folder)
    else:
        loaded.model.save_pretrained(folder, state_dict=merged(loaded.model))
    if loaded.adapter is not None:
        save_adapter(loaded.model, loaded.adapter, loaded.source, folder / ADAPTER)
    loaded.tokenizer.save_pretrained(folder)
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*.safetensors"):
        # safetensors writes files that only their owner may read
        file.chmod(0o666 & ~mask)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights and buffers, tied ones counted once."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
