"""Answers by greedy decoding: prompts in one batch, keys and values of earlier tokens kept."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blockzo.finetune.data.completions import Completions
from blockzo.finetune.errors import UserError
from blockzo.finetune.reward import NAME as REWARD
from blockzo.finetune.reward import Reward, rewarded
from blockzo.finetune.text_figures import best

MOST_TOKENS = 32


class Writer:
    """Writes answers, and says how well they meet the right ones.

    Args:
        tokenizer: of the model.
        figures: names of `TEXT_FIGURES`.
        stop: text that ends an answer and is left out; the tokenizer's end token ends one in any case.
        most: tokens of an answer at most.
        limit: tokens that the model takes.
        device: of the model.
    """

    def __init__(
        self,
        tokenizer: Any,
        figures: Sequence[str] = (),
        stop: str | None = None,
        most: int = MOST_TOKENS,
        limit: int = 1 << 20,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tokenizer, self.figures, self.stop = tokenizer, tuple(figures), stop
        self.reward: Reward | None = None
        self.most, self.limit, self.device = most, limit, torch.device(device)

    def measure_too(self, figure: str | None, reward: Reward | None) -> None:
        """Measures one of `TEXT_FIGURES`, or a reward, beside."""
        if figure is not None and figure not in self.figures:
            self.figures = (*self.figures, figure)
        self.reward = reward

    @property
    def names(self) -> tuple[str, ...]:
        """Of what `measured` gives."""
        return self.figures if self.reward is None else (*self.figures, REWARD)

    def measured(self, model: nn.Module, data: Completions, rows: Sequence[int]) -> Tensor:
        """float32 [rows, names], on the CPU."""
        prompts, right = [data.prompt(row) for row in rows], [data.answers[row] for row in rows]
        texts = self.write(model, prompts)
        found = [[best(name, *pair) for pair in zip(texts, right, strict=True)] for name in self.figures]
        if self.reward is not None:
            found.append(self.rewards(prompts, texts, right))
        return torch.tensor(found, dtype=torch.float32).T

    def rewards(
        self, prompts: Sequence[Sequence[int]], texts: Sequence[str], right: Sequence[Sequence[str]]
    ) -> list[float]:
        """
        Raises:
            UserError: the reward fails, or is not one finite number a row.
        """
        assert self.reward is not None
        told = [str(self.tokenizer.decode(prompt)) for prompt in prompts]
        return rewarded(self.reward, told, texts, right)

    @torch.no_grad()
    def write(self, model: nn.Module, prompts: Sequence[Sequence[int]]) -> list[str]:
        """What the model writes after each prompt.

        Raises:
            UserError: the model keeps no keys and values.
        """
        from transformers import DynamicCache

        width = max(len(prompt) for prompt in prompts)
        pad = self.tokenizer.pad_token_id or 0
        # padding stands at the left, so that all rows go on at the same place
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts]).to(self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]).to(self.device)
        found: list[list[int]] = [[] for _ in prompts]
        going = [True] * len(prompts)
        takes = inspect.signature(model.forward).parameters
        few = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        name = "cache" if "cache" in takes else "past_key_values"
        kept = DynamicCache(config=model.config)
        for _ in range(min(self.most, self.limit - width)):
            places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            own = {"position_ids": places} if "position_ids" in takes else {}
            output = model(input_ids=ids, attention_mask=mask, use_cache=True, **{name: kept}, **few, **own)
            if not kept.get_seq_length():
                raise UserError(
                    f"{type(model).__name__} keeps no keys and values, so answers cannot be written with it; give another model, "
                    "or leave the metrics of written text out"
                )
            ids = output.logits[:, -1].float().argmax(-1, keepdim=True)
            for row, token in enumerate(ids[:, 0].tolist()):
                if going[row]:
                    found[row].append(token)
                    going[row] = not self._ended(found[row])
            if not any(going):
                break
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return [self._text(tokens) for tokens in found]

    def _ended(self, tokens: list[int]) -> bool:
        if tokens[-1] == self.tokenizer.eos_token_id:
            return True
        # white space before an answer is none of it
        return bool(self.stop) and self.stop in self.tokenizer.decode(tokens).lstrip()

    def _text(self, tokens: list[int]) -> str:
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True)).lstrip()
        return (text.partition(self.stop)[0] if self.stop else text).strip()
