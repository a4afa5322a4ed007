"""Heads that give class logits, and a first forward that shows whether a model does what its kind promises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockzo.finetune.errors import UserError
from blockzo.noise import Noise

HEAD_FILE = "head.safetensors"
PROBE = 6
"""Tokens of the first forward."""


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


class TrainedClassifier(nn.Module):
    """A model with its own trained classifier (`...ForSequenceClassification`): logits [B, classes] in the task's order."""

    def __init__(self, model: Any, order: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.order = None if list(order) == list(range(len(order))) else list(order)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits if self.order is None else logits[:, self.order]

    def save_pretrained(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


def trained_classifier(
    model: Any, tokenizer: Any, source: str, classes: int, labels: Sequence[str]
) -> tuple[TrainedClassifier, list[str]]:
    """The model behind its own classifier, and which of its classes stands for which label.

    Raises:
        UserError: it has another number of classes, or needs a padding token that there is not.
    """
    config, name = model.config, type(model).__name__
    if (
        getattr(config, "problem_type", None) in ("regression", "multi_label_classification")
        or config.num_labels != classes
    ):
        raise UserError(
            f"{source} ({name}) has a trained head of {config.num_labels} outputs"
            f"{f' for {config.problem_type}' if getattr(config, 'problem_type', None) else ''}, the task has {classes} classes; "
            "give a task with its classes, or leave its head out with --head mean"
        )
    if getattr(config, "pad_token_id", None) is None:
        if tokenizer.pad_token_id is None:
            raise UserError(
                f"{source} ({name}) reads the last token before the padding, and neither its config.json nor its tokenizer has a "
                "padding token; set pad_token_id in config.json"
            )
        config.pad_token_id = model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    named = {str(word).strip().lower(): int(number) for number, word in (config.id2label or {}).items()}
    wanted = [label.strip().lower() for label in labels]
    if wanted and set(wanted) == set(named):
        order = [named[label] for label in wanted]
        how = "by their names"
    else:
        order, how = list(range(classes)), "in the order of their numbers"
    told = ", ".join(f"{(config.id2label or {}).get(n, n)} = {label}" for n, label in zip(order, labels, strict=False))
    return TrainedClassifier(model, order), [
        f"the trained classifier of {name} is used (--head mean leaves it out); its classes are taken {how}: "
        f"{told or f'0 to {classes - 1}'}"
    ]


@torch.no_grad()
def check_forward(source: str, model: Any, kind: str) -> None:
    """One small forward as the losses make it.

    Raises:
        UserError: the model does not run on token ids alone, gives numbers that are not finite, or, taken as causal, lets a
            token see those after it.
    """
    wrapped = {HeadedEncoder: "encoder", TrainedClassifier: "model"}.get(type(model))
    name = type(getattr(model, wrapped) if wrapped else model).__name__
    rows = getattr(model.config.get_text_config(), "vocab_size", None) or 4
    ids = torch.arange(3, 3 + PROBE).unsqueeze(0) % rows
    try:
        if kind != "causal":
            found = model(input_ids=ids, attention_mask=torch.ones_like(ids))
            first = found if isinstance(found, Tensor) else found.logits
        else:
            first = model(input_ids=ids, use_cache=False).logits
            other = ids.clone()
            other[:, PROBE // 2 :] = (other[:, PROBE // 2 :] + PROBE) % rows
            second = model(input_ids=other, use_cache=False).logits
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{source} ({name}) does not run on token ids alone: {lines[0][:300]}. Give a language model or a text encoder, "
            "or use the Python API with a loss of your own"
        ) from error
    if not torch.isfinite(first).all():
        raise UserError(f"{source} ({name}) gives logits that are not finite on a plain input; try --dtype float32")
    if kind == "causal":
        one, two = (t[:, : PROBE // 2].float() for t in (first, second))
        # a causal model gives these the same bits, but for the order of sums in routed experts
        room = 16 * torch.finfo(first.dtype).eps * float(one.abs().max())
        if float((one - two).abs().max()) > room:
            raise UserError(
                f"{source} ({name}) is not causal: its tokens see those that come after them, so it would score words "
                "that it has read. Use --head mean, or for a decoder made of an encoder set is_decoder in config.json"
            )
