"""What users compute from a model besides its own loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Batch = dict[str, Any]


def rows(batch: Batch, first: int, stop: int) -> Batch:
    return {name: value[first:stop] if isinstance(value, Tensor) else value for name, value in batch.items()}


def size(batch: Batch) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def plain(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch).loss


def widened(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of 16-bit logits in float32: rounded to 16 bits it has steps as large as what a move changes."""
    logits = model(**batch).logits.float()
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch["labels"].reshape(-1))


def micro_batches(model: nn.Module, batch: Batch) -> Tensor:
    """Gradient accumulation by hand."""
    half = size(batch) // 2
    return (model(**rows(batch, 0, half)).loss + model(**rows(batch, half, 2 * half)).loss) / 2


def uneven_micro_batches(model: nn.Module, batch: Batch) -> Tensor:
    count = size(batch)
    return (model(**rows(batch, 0, count - 1)).loss * (count - 1) + model(**rows(batch, count - 1, count)).loss) / count


def three_micro_batches(model: nn.Module, batch: Batch) -> Tensor:
    return sum(model(**rows(batch, at, at + 1)).loss * (at + 1) for at in range(3)) / 6


def preference(model: nn.Module, batch: Batch) -> Tensor:
    """Chosen and rejected answers, as DPO without its reference model."""
    half = size(batch) // 2

    def score(part: Batch) -> Tensor:
        ids = part["input_ids"]
        logits = model(input_ids=ids, attention_mask=part["attention_mask"]).logits[:, :-1]
        return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).sum((1, 2))

    return -F.logsigmoid(0.1 * (score(rows(batch, 0, half)) - score(rows(batch, half, 2 * half)))).mean()


def two_towers(model: nn.Module, batch: Batch) -> Tensor:
    """Contrastive: one model, two passes, of its last hidden states."""
    half = size(batch) // 2

    def embed(part: Batch) -> Tensor:
        out = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
        return F.normalize(out.mean(1), dim=-1)

    queries, documents = embed(rows(batch, 0, half)), embed(rows(batch, half, 2 * half))
    return F.cross_entropy(queries @ documents.t() / 0.05, torch.arange(half))


def hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    """Distillation: the output of every layer counts."""
    out = model(**batch, output_hidden_states=True)
    return out.loss + 0.3 * sum(state.float().pow(2).mean() for state in out.hidden_states)


def decoder_states(model: nn.Module, batch: Batch) -> Tensor:
    out = model(**batch, output_hidden_states=True)
    states = (*out.decoder_hidden_states, *out.encoder_hidden_states)
    return out.loss + 0.3 * sum(state.float().pow(2).mean() for state in states)


def attentions(model: nn.Module, batch: Batch) -> Tensor:
    model.set_attn_implementation("eager")
    out = model(**batch, output_attentions=True)
    return out.loss + sum(weights.float().pow(2).mean() for weights in out.attentions)


def reward(model: nn.Module, batch: Batch) -> Tensor:
    """What is generated greedily is scored by a fixed rule, smooth in nothing but the likelihood of what was said."""
    prompt = batch["input_ids"][1:, :4]
    with torch.no_grad():
        said = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False, eos_token_id=None
        )
        logits = model(input_ids=said).logits[:, :-1]
    chosen = logits.log_softmax(-1).gather(-1, said[:, 1:, None]).squeeze(-1)
    return -(chosen * (said[:, 1:] % 7).float()).mean()


def generated_scores(model: nn.Module, batch: Batch) -> Tensor:
    prompt = batch["input_ids"][1:, :4]
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=3,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    return sum(score.logsumexp(-1).mean() for score in out.scores)


def twice(model: nn.Module, batch: Batch) -> Tensor:
    """Consistency: the whole batch in order and in reverse, the second scored against the first."""
    first = model(input_ids=batch["input_ids"]).logits
    second = model(input_ids=batch["input_ids"].flip(0)).logits.flip(0)
    return F.mse_loss(first, second.roll(1, 0)) + model(**batch).loss


def gradient_checkpointing(model: nn.Module, batch: Batch) -> Tensor:
    """Switched on, as trainers do; without gradients it changes nothing."""
    model.gradient_checkpointing_enable()
    return model(**batch).loss


def checkpointed(model: nn.Module, batch: Batch) -> Tensor:
    return checkpoint(lambda ids: model(**{**batch, "input_ids": ids}).loss, batch["input_ids"], use_reentrant=False)


def layer_sum(model: nn.Module, batch: Batch) -> Tensor:
    """A weighted sum of layers, gathered by the user's own hooks."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(note) for layer in model_layers(model)]
    try:
        loss = model(**batch).loss
    finally:
        for handle in handles:
            handle.remove()
    return loss + sum((at + 1) * 0.1 * state.float().pow(2).mean() for at, state in enumerate(seen))


def model_layers(model: nn.Module) -> list[nn.Module]:
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    return list(max(lists, key=lambda found: sum(p.numel() for p in found.parameters())))


def copied(model: nn.Module, batch: Batch) -> Tensor:
    """A deep copy made inside the loss."""
    return copy.deepcopy(model)(**batch).loss


def functional(model: nn.Module, batch: Batch) -> Tensor:
    return torch.func.functional_call(model, dict(model.named_parameters()), (), dict(batch)).loss


LOSSES: dict[str, tuple[Callable[[nn.Module, Batch], Tensor], tuple[str, ...]]] = {
    "micro_batches": (
        micro_batches,
        ("llama", "bert", "gpt2", "gemma3", "mixtral", "modernbert", "t5", "vit", "deberta_v2"),
    ),
    "uneven_micro_batches": (uneven_micro_batches, ("llama", "bert", "gemma2", "opt", "t5", "wav2vec2")),
    "three_micro_batches": (three_micro_batches, ("llama", "bert_classifier", "bloom")),
    "preference": (preference, ("llama", "gpt2", "qwen3", "gemma3n")),
    "two_towers": (two_towers, ("llama", "bert", "mpnet", "albert")),
    "hidden_states": (
        hidden_states,
        ("llama", "gpt2", "bert", "distilbert", "gemma2", "vit", "mamba", "wav2vec2"),
    ),
    "decoder_states": (decoder_states, ("t5", "bart")),
    "attentions": (attentions, ("llama", "bert", "gpt2", "distilbert", "vit")),
    "reward": (reward, ("llama", "gpt2", "qwen2")),
    "generated_scores": (generated_scores, ("llama", "opt", "mamba")),
    "twice": (twice, ("llama", "bert", "albert")),
    "gradient_checkpointing": (gradient_checkpointing, ("llama", "bert", "t5")),
    "checkpointed": (checkpointed, ("llama", "bert")),
    "layer_sum": (layer_sum, ("llama", "bert", "gpt2")),
    "copied": (copied, ("llama",)),
    "functional": (functional, ("llama", "bert")),
}
"""A loss, and architectures that it is tried on."""
