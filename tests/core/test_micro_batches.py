"""Micro-batches: one record, the losses of the whole batch, the memory of one part, the same bits in any order."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import blockzo as bz
from blockzo.optim.micro_batches import loss_terms, mean_losses, weighted_sums
from tests.core import zoo

METHODS = [(bz.MeZO(), []), (bz.FZOO(3), []), (bz.SPZO(1, 2), [2]), (bz.SPZO(1, 2, "decoupled"), ["head"])]


def batch_of(rows: int = 5) -> dict[str, Tensor]:
    """Rows of different lengths, so that a mean over tokens is not the mean of rows."""
    batch = zoo.batch(rows, 9)
    for row in range(rows):
        batch["labels"][row, 2 + row :] = -100
    return batch


def cut(batch: dict[str, Tensor], sizes: list[int]) -> list[dict[str, Tensor]]:
    pieces = {name: tensor.split(sizes) for name, tensor in batch.items()}
    return [{name: parts[at] for name, parts in pieces.items()} for at in range(len(sizes))]


def optimiser(method: Any, boundaries: list[Any], **options: Any) -> bz.ZO:
    model = zoo.make("gpt2")
    return bz.ZO(model, method=method, blocks=bz.Blocks(model, boundaries), lr=1e-3, eps=1e-2, seed=3, **options)


@pytest.mark.parametrize(("method", "boundaries"), METHODS, ids=str)
@pytest.mark.parametrize("evaluate", ["perturbed", "in_place"])
def test_a_step_on_parts_is_the_step_on_the_batch(method: Any, boundaries: list[Any], evaluate: str) -> None:
    whole, parts = (optimiser(method, boundaries, evaluate=evaluate) for _ in range(2))
    one, other = whole.step(batch_of()), parts.step(cut(batch_of(), [2, 1, 2]))
    assert other.losses == pytest.approx(one.losses, rel=1e-5)
    assert other.forwards == one.forwards and parts.step_number == 1
    # one record, and it says what happened to the weights
    replayed = optimiser(method, boundaries)
    replayed.apply(other.record)
    if evaluate == "perturbed":
        assert bz.digest(replayed.model) == bz.digest(parts.model)


@pytest.mark.parametrize(("method", "boundaries"), METHODS[1:3], ids=str)
def test_the_order_of_parts_changes_no_bit(method: Any, boundaries: list[Any]) -> None:
    parts = cut(batch_of(), [2, 1, 2])
    found = [optimiser(method, boundaries).step([parts[i] for i in order]) for order in ((0, 1, 2), (2, 0, 1))]
    assert found[0].record == found[1].record


TINY = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
DECODER = {
    **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in TINY.items()},
    **{
        "vocab_size": 40,
        "d_model": 16,
        "max_position_embeddings": 16,
        "max_target_positions": 16,
        "decoder_start_token_id": 1,
    },
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
XLM = {"vocab_size": 40, "emb_dim": 16, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 16}
PLAIN = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
PICTURES = {**PLAIN, "model_type": "clip_vision_model", "image_size": 4, "patch_size": 2, "projection_dim": 16}
LABELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{name}ForCausalLM": (f"{name}Config", DECODER) for name in ("Bart", "Pegasus", "TrOCR", "Whisper")},
    "XLNetLMHeadModel": ("XLNetConfig", {"vocab_size": 40, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}),
    "XLMWithLMHeadModel": ("XLMConfig", XLM),
    "FlaubertWithLMHeadModel": ("FlaubertConfig", XLM),
    "BertLMHeadModel": ("BertConfig", {**PLAIN, "is_decoder": True}),
    "LlavaForConditionalGeneration": (
        "LlavaConfig",
        {"text_config": {**PLAIN, "model_type": "llama"}, "vision_config": PICTURES},
    ),
}


@pytest.mark.parametrize("name", sorted(LABELS))
def test_weights_are_those_of_the_model_whatever_its_name_says(name: str) -> None:
    """Most of the models named for causal losses compare each position with the label after it, some with the label at it."""
    config, settings = LABELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()
    labels = torch.randint(3, 39, (3, 7))
    batch = {"input_ids": labels, "labels": labels.clone()}
    batch["labels"][0, 4:], batch["labels"][1, 6:] = -100, -100
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        whole = float(model(**batch).loss)
        parts = cut(batch, [1, 1, 1])
        own = mean_losses([[float(model(**part).loss)] for part in parts], [loss_terms(model, part) for part in parts])
    assert own == pytest.approx([whole], rel=2e-6)


def test_weights_are_label_tokens_rows_or_what_the_user_says() -> None:
    model, batch = zoo.make("gpt2"), batch_of()
    # a causal model predicts the labels after the first
    assert loss_terms(model, batch) == int((batch["labels"][:, 1:] != -100).sum())
    assert loss_terms(zoo.make("bert"), batch) == int((batch["labels"] != -100).sum())
    assert loss_terms(model, {"input_ids": batch["input_ids"], "labels": torch.zeros(5, dtype=torch.int64)}) == 5
    assert loss_terms(model, (torch.zeros(7, 2), torch.zeros(7))) == 7
    with pytest.raises(ValueError, match="rows_of"):
        loss_terms(model, {"text": "no tensor"})
    parts = cut(batch, [2, 3])
    losses = [float(model(**part).loss) for part in parts]
    zo = bz.ZO(copy.deepcopy(model), lr=0.0, eps=1e-6, rows_of=lambda part: 1.0)
    assert zo.step(parts).loss == pytest.approx(sum(losses) / 2, rel=1e-4)
    given_weights = bz.ZO(copy.deepcopy(model), lr=0.0, eps=1e-6).step(bz.MicroBatches(parts, [3, 1]))
    assert given_weights.loss == pytest.approx((3 * losses[0] + losses[1]) / 4, rel=1e-4)


def test_a_part_without_a_label_is_left_out() -> None:
    batch = batch_of()
    batch["labels"][:2] = -100
    zo = optimiser(bz.MeZO(), [])
    assert zo.step(cut(batch, [2, 3])).losses == optimiser(bz.MeZO(), []).step(cut(batch, [2, 3])[1]).losses
    batch["labels"][:] = -100
    with pytest.raises(ValueError, match="weight 0"):
        zo.step(cut(batch, [2, 3]))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(x), y)


def test_a_list_that_the_loss_takes_is_one_batch() -> None:
    """A DataLoader over tuples gives lists [x, y]."""
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    found = [bz.ZO(Classifier(), lambda m, b: m.loss(*b), lr=1e-3, seed=1).step(batch) for batch in ((x, y), [x, y])]
    assert found[0].losses == found[1].losses
    parts = bz.ZO(Classifier(), lambda m, b: m.loss(*b), lr=1e-3, seed=1).step([(x[:2], y[:2]), (x[2:], y[2:])])
    assert parts.losses == pytest.approx(found[0].losses, rel=1e-5)
    tensors = bz.ZO(zoo.make("gpt2"), lambda m, ids: m(input_ids=ids, labels=ids).loss, seed=1)
    assert tensors.step(list(zoo.batch(4)["input_ids"].split(2))).forwards == 2
    with pytest.raises(ValueError, match="MicroBatches"):
        bz.ZO(Classifier(), lambda m, b: m.linear(torch.ones(len(b), 4)).mean()).step([x, x])
    with pytest.raises(ValueError, match="neither an entry"):
        bz.ZO(Classifier(), lambda m, b: m.loss(*b)).step([x[:1], x[:1], x[:1]])


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, -1.0], [1.0, float("nan")]], ids=str)
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        bz.MicroBatches([1, 2], weights)


# float32 with all their bits, from 2^-43 to 2^14: sums have more bits than one number holds, and no more than two hold
LOSSES = st.builds(math.ldexp, st.integers(1 - (1 << 24), (1 << 24) - 1), st.integers(-43, -10))


@given(
    st.lists(st.tuples(LOSSES, st.integers(1, 1 << 20)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
    st.integers(1, 4),
)
def test_sums_do_not_depend_on_order_or_ranks(rows: list[tuple[float, int]], random: Any, ranks: int) -> None:
    def total(order: list[tuple[float, int]], shares: int) -> float:
        found = []
        for rank in range(shares):
            own = order[rank::shares]
            if own:
                found += weighted_sums([[loss] for loss, _ in own], [weight for _, weight in own])
        return math.fsum(part for pair in found for part in pair) / math.fsum(w for _, w in order)

    shuffled = list(rows)
    random.shuffle(shuffled)
    assert total(rows, 1) == total(shuffled, ranks)
    if len(rows) > 1:
        assert total(rows, 1) == mean_losses([[loss] for loss, _ in rows], [weight for _, weight in rows])[0]


def test_memory_is_that_of_one_part() -> None:
    model = zoo.make("gpt2")
    batch = zoo.batch(8, 16)
    sizes = {}
    for number, parts in ((1, [8]), (4, [2, 2, 2, 2])):
        zo = bz.ZO(copy.deepcopy(model), method=bz.SPZO(1, 2), blocks=None, lr=1e-3, max_group=1)
        _, found = zo._evaluated(bz.MicroBatches(cut(batch, parts)), zo._perturbed)
        sizes[number] = found.kept_bytes
    assert sizes[4] == pytest.approx(sizes[1] / 4, rel=0.01)


@pytest.mark.parametrize(
    ("method", "boundaries"), [*METHODS[1:3], (bz.Auto(costs=(1.0, 2.0)), [2])], ids=["fzoo", "spzo", "auto"]
)
def test_estimates_of_parts_combine_to_that_of_all(method: Any, boundaries: list[Any]) -> None:
    parts = cut(batch_of(), [2, 1, 2])
    zo = optimiser(method, boundaries, weight_decay=0.1, no_decay=lambda name: "bias" in name)
    for _ in range(3):
        together = zo.estimate(parts)
        found = [zo.estimate(part) for part in parts]
        combined = zo.combine(found, [loss_terms(zo.model, part) for part in parts])
        assert combined == together
        # FZOO's scalars of each part, averaged, are others
        zo.commit(combined)
    with pytest.raises(ValueError, match="expected estimates of step 3"):
        zo.combine(found, [1, 1, 1])
    with pytest.raises(ValueError, match="2 weights for 3"):
        zo.combine(found, [1, 1])


def test_estimates_of_examples_do_not_combine() -> None:
    zo = optimiser(bz.MeZO(), [], per_example=True)
    result = zo.estimate(batch_of())
    with pytest.raises(ValueError, match="MicroBatches"):
        zo.combine([result, result], [1, 1])
