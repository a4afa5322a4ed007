"""The few logits that are made equal the same entries of the full model's logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from blockzo import ZO, Blocks, MeZO, Noise
from blockzo.finetune.data.prompts import Encoded, Encoder
from blockzo.finetune.data.read import Example
from blockzo.finetune.data.tasks import PromptTask
from blockzo.finetune.models.loading import Loaded, load
from blockzo.finetune.scoring import Scorer, final_norm, label_logits

TASK = PromptTask("custom", "{text} It was {label}.", {"0": "terrible", "1": "great", "2": "good"})
TEXTS = (
    "the film is bad",
    "a story",
    "the film is very good and the story is not bad , but the film is a film of the story",
)


def prepared(folder: Path) -> tuple[Loaded, Scorer, Encoded]:
    loaded = load(str(folder), "float32", head="words")
    encoder = Encoder(loaded.tokenizer, TASK, loaded.kind, loaded.limit)
    data = encoder.encode([Example({"text": text}, i % 3, "here") for i, text in enumerate(TEXTS)])
    scorer = Scorer(loaded.kind, encoder.label_ids()[0], loaded.tokenizer.pad_token_id)
    # fresh weights make flat logits and zero biases; these make a wrong position, word or bias visible
    torch.manual_seed(3)
    for parameter in loaded.model.parameters():
        parameter.data.mul_(3).add_(0.1 * torch.randn_like(parameter))
    return loaded, scorer, data


def full_logits(loaded: Loaded, data: Encoded, scorer: Scorer) -> torch.Tensor:
    """Every row alone, unpadded, through the whole head."""
    found = []
    for ids, position in zip(data.ids, data.positions, strict=True):
        logits = loaded.model(input_ids=torch.tensor([ids])).logits
        assert logits.shape == (1, len(ids), loaded.model.config.vocab_size)
        found.append(logits[0, position, scorer.words])
    return torch.stack(found)


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2", "qwen2", "roberta", "bert"])
@torch.no_grad()
def test_label_logits_equal_those_of_the_full_model(tiny: Callable[[str], Path], name: str) -> None:
    loaded, scorer, data = prepared(tiny(name))
    assert loaded.kind == ("masked" if name in ("roberta", "bert") else "causal")
    expected = full_logits(loaded, data, scorer)
    assert expected.std() > 0.01
    batch = scorer.batch(data, range(3))
    assert batch["ids"].shape[1] == max(data.lengths)
    found = scorer.logits(loaded.model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    loss = scorer.loss(loaded.model, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(expected, torch.tensor(data.labels)), rtol=1e-4, atol=1e-5)
    again = full_logits(loaded, data, scorer)
    assert torch.equal(again, expected), "the model must be as it was after the few logits were made"


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2", "qwen2", "roberta", "bert"])
@torch.no_grad()
def test_positions_are_gathered_before_the_last_norm_where_there_is_one(tiny: Callable[[str], Path], name: str) -> None:
    loaded, scorer, data = prepared(tiny(name))
    batch = scorer.batch(data, range(3))
    late = scorer.logits(loaded.model, batch)
    scorer.settle(loaded.model, data)
    # this OPT projects what its norm gives, GPT-2 shapes it as all tokens, and the masked ones end with a layer
    assert (scorer.norm is not None) == (name in ("llama", "qwen2"))
    torch.testing.assert_close(scorer.logits(loaded.model, batch), late, rtol=1e-5, atol=1e-6)
    if scorer.norm is not None:
        shapes: list[tuple[int, ...]] = []
        handle = scorer.norm.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[:2])))
        scorer.loss(loaded.model, batch)
        handle.remove()
        assert shapes == [(3, 1)]


def test_a_norm_that_the_trunk_does_not_end_with_is_left_alone() -> None:
    class Trunk(torch.nn.Module):
        """Like trunks with a norm on their embeddings."""

        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.LayerNorm(4)
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.layer(self.first(hidden))
            return found

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = Trunk()

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.base_model(hidden)
            return found

    model = Model()
    assert final_norm(model, lambda: model(torch.randn(2, 3, 4))) is None
    model.base_model.layer = torch.nn.Identity()  # type: ignore[assignment]
    assert final_norm(model, lambda: model(torch.randn(2, 3, 4))) is model.base_model.first


@pytest.mark.parametrize("name", ["opt", "roberta", "gpt2"])
def test_only_label_rows_and_positions_are_multiplied(tiny: Callable[[str], Path], name: str) -> None:
    loaded, scorer, data = prepared(tiny(name))
    batch = scorer.batch(data, range(3))
    sizes = []
    head = loaded.model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: sizes.append((tuple(args[0].shape[:2]), output.shape[-1])))
    with torch.no_grad():
        scorer.logits(loaded.model, batch)
    assert sizes == [((3, 1), 3)]


@torch.no_grad()
def test_the_patch_is_undone_when_an_exception_passes_through(tiny: Callable[[str], Path]) -> None:
    loaded, scorer, data = prepared(tiny("llama"))
    batch = scorer.batch(data, range(3))
    expected = full_logits(loaded, data, scorer)

    class Stop(Exception):
        pass

    def stop(module: torch.nn.Module, args: object) -> None:
        raise Stop

    handle = loaded.model.model.layers[2].register_forward_pre_hook(stop)
    with pytest.raises(Stop):
        scorer.loss(loaded.model, batch)
    handle.remove()
    assert torch.equal(full_logits(loaded, data, scorer), expected)
    assert "forward" not in loaded.model.get_output_embeddings().__dict__


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2", "qwen2", "roberta", "bert"])
def test_blocks_and_moved_weights_reach_the_few_logits(tiny: Callable[[str], Path], name: str) -> None:
    """The losses of a step equal those of copies of the model that were moved for real."""
    loaded, scorer, data = prepared(tiny(name))
    batch = scorer.batch(data, range(3))
    blocks = Blocks(loaded.model, [2], example=scorer.inputs(batch))
    zo = ZO(loaded.model, scorer.loss, method=MeZO(), blocks=blocks, eps=1e-2, lr=0.0)
    base = {n: p.detach().clone() for n, p in loaded.model.named_parameters()}
    result = zo.step(batch)
    noise = Noise(result.seed)
    for sign, loss in zip((1, -1), result.losses, strict=True):
        with torch.no_grad():
            for parameter_name, parameter in loaded.model.named_parameters():
                z = noise.sample(parameter_name, base[parameter_name].shape)
                parameter.copy_(base[parameter_name] + sign * 1e-2 * z)
            moved = scorer.loss(loaded.model, batch)
        torch.testing.assert_close(torch.tensor(loss), moved, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_language_model_loss_is_the_models_own(tiny: Callable[[str], Path]) -> None:
    loaded = load(str(tiny("llama")), "float32")
    data = Encoded([[5, 6, 7, 8, 9], [9, 8, 7]], [0, 0], [0, 0])
    scorer = Scorer("lm", pad=1)
    batch = scorer.batch(data, [0, 1])
    targets = batch["ids"].masked_fill(batch["mask"] == 0, -100)
    own = loaded.model(input_ids=batch["ids"], attention_mask=batch["mask"], labels=targets).loss
    torch.testing.assert_close(scorer.loss(loaded.model, batch), own, rtol=1e-5, atol=1e-6)
    per_row = scorer.token_losses(loaded.model, batch)
    assert per_row[:, 1].tolist() == [4.0, 2.0]


class Nested(torch.nn.Module):
    """A base model that calls its own decoder, as some do; the output is gathered once."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = torch.nn.Embedding(20, 8)
        self.base_model = torch.nn.Module()
        self.base_model.decoder = self.decoder
        self.base_model.forward = lambda ids: (self.decoder(ids),)  # type: ignore[method-assign]
        self.head = torch.nn.Linear(8, 20)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.base_model(ids)[0]
        return self.head(hidden)  # type: ignore[no-any-return]


@torch.no_grad()
def test_nested_trunks_are_gathered_once() -> None:
    model = Nested()
    ids = torch.arange(12).view(3, 4)
    positions, words = torch.tensor([3, 0, 2]), torch.tensor([5, 9])
    full = model(ids)
    with label_logits(model, positions, words):
        few = model(ids)
    torch.testing.assert_close(few[:, 0], full[torch.arange(3), positions][:, words])


def test_a_model_without_head_is_refused(tiny: Callable[[str], Path]) -> None:
    loaded = load(str(tiny("encoder")), "float32", head="mean", classes=2)
    with (
        pytest.raises(ValueError, match="no output embeddings"),
        label_logits(loaded.model, torch.zeros(1), torch.zeros(1)),
    ):
        pass
