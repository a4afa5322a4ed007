"""Greedy answers against a plain loop without a cache, and their figures in runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blockzo.finetune import Settings, evaluate, finetune
from blockzo.finetune.data.completions import Completions
from blockzo.finetune.errors import UserError
from blockzo.finetune.generation import Writer
from blockzo.finetune.models.loading import Loaded, load
from blockzo.finetune.text_figures import best

Tiny = Callable[[str], Path]
PROMPTS = [[5, 6, 7], [9, 10, 11, 12, 13, 14, 15], [8]]


def lively(folder: Path) -> Loaded:
    """Weights large enough that the next token depends on all before it."""
    loaded = load(str(folder), "float32")
    torch.manual_seed(3)
    for parameter in loaded.model.parameters():
        parameter.data.mul_(3).add_(0.1 * torch.randn_like(parameter))
    return loaded


@torch.no_grad()
def alone(loaded: Loaded, prompt: Sequence[int], most: int) -> list[int]:
    """One prompt, the whole of it through the model for every token."""
    ids = list(prompt)
    for _ in range(most):
        ids.append(int(loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == loaded.tokenizer.eos_token_id:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
def test_a_batch_with_a_cache_writes_what_each_prompt_writes_alone(tiny: Tiny, name: str) -> None:
    loaded = lively(tiny(name))
    expected = [alone(loaded, prompt, 8) for prompt in PROMPTS]
    assert len({tuple(one) for one in expected}) == 3
    texts = [loaded.tokenizer.decode(one, skip_special_tokens=True).strip() for one in expected]
    assert Writer(loaded.tokenizer, most=8).write(loaded.model, PROMPTS) == texts


def test_an_answer_ends_at_its_stop_and_before_the_models_limit(tiny: Tiny) -> None:
    loaded = lively(tiny("llama"))
    tokens = alone(loaded, PROMPTS[1], 6)
    stop = loaded.tokenizer.decode(tokens[2:3]).strip()
    texts = Writer(loaded.tokenizer, stop=stop, most=6).write(loaded.model, PROMPTS[1:2])
    assert texts == [loaded.tokenizer.decode(tokens).lstrip().partition(stop)[0].strip()] and stop not in texts[0]
    short = Writer(loaded.tokenizer, most=6, limit=9).write(loaded.model, PROMPTS[1:2])
    assert short == [loaded.tokenizer.decode(tokens[:2]).strip()]
    assert Writer(loaded.tokenizer, limit=7).write(loaded.model, PROMPTS[1:2]) == [""]


def test_figures_are_those_of_the_best_met_answer(tiny: Tiny) -> None:
    loaded = lively(tiny("llama"))
    data = Completions(PROMPTS, [3, 7, 1], [0] * 3, spans=[[]] * 3, answers=[("good", "bad"), ("the film",), ("x",)])
    writer = Writer(loaded.tokenizer, ("f1", "exact_match"), most=4)
    texts = writer.write(loaded.model, [data.prompt(row) for row in (2, 0)])
    expected = [
        [best(name, text, data.answers[row]) for name in writer.figures]
        for text, row in zip(texts, (2, 0), strict=True)
    ]
    assert writer.measured(loaded.model, data, [2, 0]).tolist() == expected


def test_a_model_without_a_cache_is_refused(tiny: Tiny) -> None:
    loaded = load(str(tiny("llama")), "float32")

    class Other(torch.nn.Module):
        config = loaded.model.config

        def forward(self, input_ids: Any, attention_mask: Any, past_key_values: Any, use_cache: bool) -> Any:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 9))

    with pytest.raises(UserError, match="Other keeps no keys and values"):
        Writer(loaded.tokenizer).write(Other(), PROMPTS)


@pytest.mark.parametrize("objective", ["loss", "rouge_l"])
def test_a_run_on_written_answers_and_its_scores_again(tiny: Tiny, tmp_path: Path, objective: str) -> None:
    lines = [{"question": f"is the story {i} ?", "answer": ("yes", "no")[i % 2]} for i in range(12)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    own: dict[str, Any] = {
        "task": "sft",
        "template": "{prompt} it is",
        "columns": "prompt=question,completion=answer",
        "metrics": "f1,rouge_l",
        "max_new_tokens": 3,
        "train": str(path),
    }
    result = finetune(
        Settings(str(tiny("llama")), **own, holdout=4, batch=2, steps=2, lr="1e-2", objective=objective),
        tmp_path / "out",
    )
    assert result["after"].keys() == {"rows", "loss", "perplexity", "f1", "rouge_l"} and result["after"]["rows"] == 4
    again = evaluate(Settings(str(tmp_path / "out" / "model"), **own, holdout=4))
    assert again["scores"] == pytest.approx(result["after"], rel=1e-5)
