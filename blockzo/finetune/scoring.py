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

from blockzo.finetune.data.completions import Completions
from blockzo.finetune.data.prompts import Encoded
from blockzo.finetune.generation import Writer
from blockzo.optim.micro_batches import IGNORED

Batch = Mapping[str, Tensor]
LANGUAGE = ("lm", "completion")
"""Kinds whose loss is that of tokens."""


@contextmanager
def label_logits(
    model: nn.Module, positions: Tensor, words: Tensor | None, norm: nn.Module | None = None
) -> Iterator[None]:
    """Inside, a Hugging Face model with a language-model head gives logits of shape [B, K, len(words)].

    Args:
        positions: [B, K] (or [B], K being 1), indices of the tokens whose hidden states are read.
        words: [C], token ids of the label words; None: the whole vocabulary.
        norm: the norm that ends the trunk (`final_norm`); its input is gathered already, so that it works on [B, 1, D].
    """
    find: Any = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    if head is None:
        raise ValueError(
            f"{type(model).__name__} has no output embeddings; expected a model with a language-model head"
        )
    places = positions if positions.dim() == 2 else positions.unsqueeze(1)
    rows = torch.arange(places.shape[0], device=places.device).unsqueeze(1)
    done = False

    def gather(module: nn.Module, args: Any, output: Any) -> Any:
        # a decoder inside the base model may have gathered already
        nonlocal done
        if done:
            return output
        done = True
        hidden = output if isinstance(output, Tensor) else output[0]
        chosen = hidden[rows, places]
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
        return (args[0][rows, places], *args[1:])

    def few(hidden: Tensor) -> Tensor:
        bias = getattr(head, "bias", None)
        return F.linear(hidden, head.weight[words], None if bias is None else bias[words])

    handles = [module.register_forward_hook(gather) for module in _trunks(model)]
    if norm is not None:
        handles.append(norm.register_forward_pre_hook(early))
    own = head.__dict__.get("forward")
    if words is not None:
        head.__dict__["forward"] = few
    try:
        yield
    finally:
        if own is None:
            head.__dict__.pop("forward", None)
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
        kind: "causal", "masked", "head" (the model returns class logits), "lm" (next-token loss over whole rows) or
            "completion" (of the answers alone; its rows are `Completions`).
        words: token ids of the label words (causal and masked).
        pad: token id for padding.
        device: of the model; batches are made there.
        writer: of a completion task whose written answers are measured.
    """

    def __init__(
        self,
        kind: str,
        words: Sequence[int] = (),
        pad: int = 0,
        device: torch.device | str = "cpu",
        writer: Writer | None = None,
    ) -> None:
        self.kind = kind
        self.writer = writer
        self.device = torch.device(device)
        self.words = torch.tensor(list(words), dtype=torch.int64).to(self.device)
        self.pad = pad
        self.norm: nn.Module | None = None

    def settle(self, model: nn.Module, data: Encoded) -> None:
        """Looks, on one row, whether label positions can be gathered before the last norm, and does so from now on."""
        if self.kind in ("causal", "masked", "completion") and len(data.ids):
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
        if isinstance(data, Completions):
            found.update(_predicted(data, rows))
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Keyword arguments of the model's forward."""
        if self.kind in ("causal", *LANGUAGE):
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
        if self.kind in LANGUAGE:
            totals = self.token_losses(model, batch).sum(0)
            return totals[0] / totals[1]
        logits = self.logits(model, batch)
        if "log_prior" in batch:
            logits = logits + batch["log_prior"].to(logits.device)
        return F.cross_entropy(logits, batch["labels"])

    def token_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [B, 2]: for every row the sum of its next-token losses in nats, and how many tokens were predicted."""
        if self.kind == "completion":
            with label_logits(model, batch["places"], None, self.norm):
                logits = model(**self.inputs(batch)).logits.float()
            return _summed(logits, batch["targets"])
        logits = model(**self.inputs(batch)).logits[:, :-1].float()
        counted = batch["mask"][:, 1:]
        targets = batch["ids"][:, 1:].masked_fill(counted == 0, -100)
        return _summed(logits, targets)

    def terms(self, batch: Batch) -> float:
        """What the loss of a batch is a mean over: rows, or tokens that are predicted."""
        if self.kind == "completion":
            return int((batch["targets"] != IGNORED).sum())
        return int(batch["mask"][:, 1:].sum()) if self.kind == "lm" else batch["ids"].shape[0]

    def measured(self, model: nn.Module, data: Encoded, rows: Sequence[int]) -> Tensor:
        """What held-out scores are made of (`metrics.measure`), float32 [rows, N] on the CPU."""
        inputs = self.batch(data, rows)
        if self.kind not in LANGUAGE:
            return self.logits(model, inputs).cpu()
        found = self.token_losses(model, inputs).cpu()
        if self.writer is None or not self.writer.names:
            return found
        assert isinstance(data, Completions)
        return torch.cat([found, self.writer.measured(model, data, rows)], dim=1)


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    """[B, K, V] logits and [B, K] targets -> [B, 2]: sum of the losses of each row, and how many they are."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return torch.stack([losses.view(targets.shape).sum(1), (targets != IGNORED).sum(1).float()], dim=1)


def _predicted(data: Completions, rows: Sequence[int]) -> dict[str, Tensor]:
    """places [B, K]: tokens that predict one that counts; targets [B, K]: these, IGNORED where a row has fewer; rows [B]."""
    every = [data.predicted(row) for row in rows]
    most = max(map(len, every))
    places = torch.zeros(len(rows), most, dtype=torch.int64)
    targets = torch.full((len(rows), most), IGNORED, dtype=torch.int64)
    for i, (row, found) in enumerate(zip(rows, every, strict=True)):
        places[i, : len(found)] = torch.tensor(found) - 1
        targets[i, : len(found)] = torch.tensor([data.ids[row][place] for place in found])
    return {"places": places, "targets": targets, "rows": torch.tensor(list(rows), dtype=torch.int64)}
