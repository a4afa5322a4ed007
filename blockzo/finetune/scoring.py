"""Losses and scores of a batch; of a language model's logits only those of the label words at the label positions are made.

The model's own forward and head code run; two things are exchanged for the duration of one call: the trunk's output is
gathered at the label positions, and the output embedding multiplies with the rows of the label words alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockzo.finetune.data.prompts import Encoded

Batch = Mapping[str, Tensor]


@contextmanager
def label_logits(model: nn.Module, positions: Tensor, words: Tensor, norm: nn.Module | None = None) -> Iterator[None]:
    """Inside, a Hugging Face model with a language-model head gives logits of shape [B, 1, len(words)].

    Args:
        positions: [B], index of the token whose hidden state is read.
        words: [C], token ids of the label words.
        norm: the norm that ends the trunk (`final_norm`); its input is gathered already, so that it works on [B, 1, D].
    """
    find: Any = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    if head is None:
        raise ValueError(
            f"{type(model).__name__} has no output embeddings; expected a model with a language-model head"
        )
    rows = torch.arange(positions.shape[0], device=positions.device)
    done = False

    def gather(module: nn.Module, args: Any, output: Any) -> Any:
        # a decoder inside the base model may have gathered already
        nonlocal done
        if done:
            return output
        done = True
        hidden = output if isinstance(output, Tensor) else output[0]
        chosen = hidden[rows, positions].unsqueeze(1)
        if isinstance(output, tuple):
            return (chosen, *output[1:])
        if isinstance(output, Tensor):
            return chosen
        output["last_hidden_state"] = chosen
        return output

    def early(module: nn.Module, args: Any) -> Any:
        nonlocal done
        if done:
            return None
        done = True
        return (args[0][rows, positions].unsqueeze(1), *args[1:])

    def few(hidden: Tensor) -> Tensor:
        bias = getattr(head, "bias", None)
        return F.linear(hidden, head.weight[words], None if bias is None else bias[words])

    handles = [module.register_forward_hook(gather) for module in _trunks(model)]
    if norm is not None:
        handles.append(norm.register_forward_pre_hook(early))
    own = head.__dict__.get("forward")
    head.__dict__["forward"] = few
    try:
        yield
    finally:
        if own is None:
            del head.__dict__["forward"]
        else:
            head.__dict__["forward"] = own
        for handle in handles:
            handle.remove()


def _trunks(model: nn.Module) -> list[nn.Module]:
    """Modules whose output may be what the head reads: OPT's head calls the decoder inside its base model directly."""
    base = model.base_model
    inner = getattr(base, "decoder", None)
    return [module for module in (inner, base) if isinstance(module, nn.Module) and module is not model]


@torch.no_grad()
def final_norm(model: nn.Module, run: Callable[[], Any]) -> nn.Module | None:
    """The norm whose result is what the trunk returns, seen in one `run` of the model; None where there is no such norm.

    It works on each token alone, so label positions can be gathered before it as well as after: with the head moved many times
    on kept activations, most of the work would be to normalise tokens that nobody reads.
    """
    ends: list[tuple[nn.Module, int]] = []
    returned: list[int] = []

    def place(tensor: Tensor) -> int:
        # kept alive, or a later tensor might have its number. A view will not do: its shape may be that of all tokens
        kept.append(tensor)
        return id(tensor)

    def seen(module: nn.Module, args: Any, output: Any) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor) and args[0].dim() == 3:
            ends.append((module, place(output)))

    def left(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        returned.append(place(hidden))

    kept: list[Tensor] = []
    trunks = _trunks(model)
    norms = [child for trunk in trunks for child in trunk.children() if type(child).__name__.endswith("Norm")]
    handles = [module.register_forward_hook(seen) for module in norms]
    handles += [trunk.register_forward_hook(left) for trunk in trunks]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return next((module for module, output in ends if output in returned), None)


class Scorer:
    """What a task asks of a model: `loss(model, batch)` for training, `logits(model, batch)` for evaluation.

    Args:
        kind: "causal", "masked", "head" (the model returns class logits), or "lm" (next-token loss over whole rows).
        words: token ids of the label words (causal and masked).
        pad: token id for padding.
        device: of the model; batches are made there.
    """

    def __init__(self, kind: str, words: Sequence[int] = (), pad: int = 0, device: torch.device | str = "cpu") -> None:
        self.kind = kind
        self.device = torch.device(device)
        self.words = torch.tensor(list(words), dtype=torch.int64).to(self.device)
        self.pad = pad
        self.norm: nn.Module | None = None

    def settle(self, model: nn.Module, data: Encoded) -> None:
        """Looks, on one row, whether label positions can be gathered before the last norm, and does so from now on."""
        if self.kind in ("causal", "masked"):
            inputs = self.inputs(self.batch(data, [0]))
            self.norm = final_norm(model, lambda: model(**inputs))

    def batch(self, data: Encoded, rows: Sequence[int]) -> dict[str, Tensor]:
        """Rows padded at their right end to the longest of them: ids [B, T], mask [B, T], positions [B], labels [B]."""
        width = max(len(data.ids[row]) for row in rows)
        ids = torch.full((len(rows), width), self.pad, dtype=torch.int64)
        mask = torch.zeros(len(rows), width, dtype=torch.int64)
        for place, row in enumerate(rows):
            count = len(data.ids[row])
            ids[place, :count] = torch.tensor(data.ids[row], dtype=torch.int64)
            mask[place, :count] = 1
        found = {
            "ids": ids,
            "mask": mask,
            "positions": torch.tensor([data.positions[row] for row in rows], dtype=torch.int64),
            "labels": torch.tensor([data.labels[row] for row in rows], dtype=torch.int64),
        }
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Keyword arguments of the model's forward."""
        if self.kind in ("causal", "lm"):
            # padding stands at the right, where a causal model cannot see it from any token that counts: no mask is
            # needed, and attention takes its plain causal path
            return {"input_ids": batch["ids"], "use_cache": False}
        return {"input_ids": batch["ids"], "attention_mask": batch["mask"]}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [B, C]: a score for every class."""
        if self.kind == "head":
            return model(**self.inputs(batch)).float()
        with label_logits(model, batch["positions"], self.words, self.norm):
            return model(**self.inputs(batch)).logits[:, 0].float()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross entropy of the batch, a float32 scalar. "log_prior" [C] in the batch is added to the logits before."""
        if self.kind == "lm":
            totals = self.token_losses(model, batch).sum(0)
            return totals[0] / totals[1]
        logits = self.logits(model, batch)
        if "log_prior" in batch:
            logits = logits + batch["log_prior"].to(logits.device)
        return F.cross_entropy(logits, batch["labels"])

    def token_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [B, 2]: for every row the sum of its next-token losses in nats, and how many tokens were predicted."""
        logits = model(**self.inputs(batch)).logits[:, :-1].float()
        counted = batch["mask"][:, 1:]
        targets = batch["ids"][:, 1:].masked_fill(counted == 0, -100)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
        return torch.stack([losses.view(targets.shape).sum(1), counted.sum(1).float()], dim=1)
