"""Loading a model the way its name asks for, and saving it so that `from_pretrained` loads it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockzo.finetune.errors import UserError
from blockzo.finetune.packages import BUILT_IN, fetch
from blockzo.noise import Noise

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEAD_FILE = "head.safetensors"


@dataclass
class Loaded:
    """A model in evaluation mode; `kind` is "causal", "masked" or "head"."""

    model: Any
    tokenizer: Any
    kind: str
    source: str
    limit: int
    """Most tokens that the model takes."""


class HeadedEncoder(nn.Module):
    """An encoder whose hidden states are averaged over the tokens and go through a linear layer: logits [B, classes]."""

    def __init__(self, encoder: Any, classes: int, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config
        width = encoder.config.hidden_size
        self.head = nn.Linear(width, classes, dtype=encoder.dtype)
        with torch.no_grad():
            # a function of the seed alone, so that a replay can make the same head
            start = Noise(seed, "gaussian").sample("head.weight", (classes, width)) * width**-0.5
            self.head.weight.copy_(start)
            self.head.bias.zero_()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weight).sum(1) / weight.sum(1)
        return F.linear(pooled, self.head.weight, self.head.bias)

    def save_pretrained(self, folder: Path) -> None:
        from safetensors.torch import save_file

        self.encoder.save_pretrained(folder)
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.head.state_dict().items()}
        save_file(tensors, Path(folder) / HEAD_FILE)


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
    source: str, dtype: str, head: str = "auto", classes: int = 0, seed: int = 0, task: str = "classification"
) -> Loaded:
    """Loads a folder, a GGUF file or folder, or a hub name.

    Args:
        head: "auto" (by the model's architecture), "words" (its language-model head) or "mean" (mean pooling and a linear
            layer of `classes` outputs, made from `seed` unless the folder holds one).

    Raises:
        UserError: it cannot be found or loaded, or has no head that the task can use.
    """
    transformers = quiet_transformers()
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    gguf = _gguf_file(Path(source))
    if gguf is not None:
        model, tokenizer = read_gguf(gguf, dtype)
        kind = "causal"
    else:
        config = _attempt(source, lambda: transformers.AutoConfig.from_pretrained(source))
        kind = _kind(config, source, head)
        if task == "lm" and kind != "causal":
            raise UserError(f"{source} is not a causal model; --task lm needs one that predicts the next token")
        tokenizer = _attempt(source, lambda: transformers.AutoTokenizer.from_pretrained(source))
        model = _attempt(source, lambda: _read(transformers, source, kind, DTYPES[dtype], config))
    if kind == "head":
        model = _with_head(model, source, classes, seed)
    model.eval()
    for name, parameter in model.named_parameters():
        # an encoder's pooler, where it cannot be left out, is read by no loss here
        parameter.requires_grad_(not (kind == "head" and ".pooler." in name))
    return Loaded(model, tokenizer, kind, source, _limit(model.config, tokenizer))


def quiet_transformers() -> Any:
    """The module, without its own progress bars and notes."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _attempt(source: str, action: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return action()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        kind = (
            "a folder"
            if Path(source).exists()
            else "no folder here and not a built-in model, so it was sought on the hub"
        )
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"the model {source!r} cannot be loaded ({kind}): {reason}\n"
            f"Expected a folder with config.json, tokenizer files and weights, a .gguf file, one of {', '.join(BUILT_IN)}, or "
            "a hub name where there is a network"
        ) from error


def _kind(config: Any, source: str, head: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    if head not in ("auto", "words", "mean"):
        raise UserError(f"head is {head!r}; expected auto, words or mean")
    if head == "mean" or (head == "auto" and (Path(source) / HEAD_FILE).is_file()):
        return "head"
    name = (getattr(config, "architectures", None) or [""])[0]
    if name.endswith("ForMaskedLM"):
        return "masked"
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    if config.model_type in CAUSAL and config.model_type not in MASKED:
        return "causal"
    if head == "words":
        raise UserError(f"{source} ({name or config.model_type}) has no language-model head; use --head mean")
    return "head"


def _read(transformers: Any, source: str, kind: str, dtype: torch.dtype, config: Any) -> Any:
    if kind == "causal":
        return transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    if kind == "masked":
        return transformers.AutoModelForMaskedLM.from_pretrained(source, dtype=dtype)
    try:
        # a pooler would be weights that no loss reads
        return transformers.AutoModel.from_pretrained(source, dtype=dtype, add_pooling_layer=False)
    except TypeError:
        return transformers.AutoModel.from_pretrained(source, dtype=dtype)


def _with_head(encoder: Any, source: str, classes: int, seed: int) -> HeadedEncoder:
    from safetensors.torch import load_file

    model = HeadedEncoder(encoder, classes, seed)
    saved = Path(source) / HEAD_FILE
    if saved.is_file():
        tensors = load_file(saved)
        if tensors["weight"].shape != model.head.weight.shape:
            raise UserError(
                f"{saved} has {tensors['weight'].shape[0]} classes, the task has {classes}; use the task it was trained for"
            )
        model.head.load_state_dict(tensors)
    return model


def _limit(config: Any, tokenizer: Any) -> int:
    limit = int(getattr(config, "max_position_embeddings", 0) or 1 << 20)
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer"):
        # their positions begin after the padding id
        limit -= (config.pad_token_id or 0) + 1
    return min(limit, int(min(tokenizer.model_max_length, 1 << 20)))


def _gguf_file(path: Path) -> Path | None:
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"{path} is a file; expected a model folder or a .gguf file")
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise UserError(f"{path} holds {len(found)} .gguf files ({', '.join(f.name for f in found)}); name one of them")
    return found[0] if found else None


def read_gguf(path: Path, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file, its quantised weights expanded to `dtype`."""
    transformers = quiet_transformers()
    folder, name = str(path.parent), path.name
    tokenizer = _attempt(str(path), lambda: transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name))
    model = _attempt(
        str(path),
        lambda: transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=DTYPES[dtype]),
    )
    # it is no longer quantised; with these left, save_pretrained refuses
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    return model, tokenizer


def save(loaded: Loaded, folder: Path) -> None:
    """Weights in safetensors, configuration and tokenizer: `from_pretrained(folder)` loads them."""
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.glob("*.safetensors"):
        # safetensors writes files that only their owner may read
        file.chmod(0o666 & ~mask)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights and buffers, tied ones counted once."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
