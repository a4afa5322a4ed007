"""Blocks: the same numbers as the whole model, nothing run twice, every parameter in the block that uses it first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import blockzo as bz
from blockzo.perturb import PerturbedForward
from tests.core import zoo


def run_in_blocks(blocks: bz.Blocks, forward):
    kept = None
    for block in range(len(blocks)):
        kept = blocks.run(forward, block, block + 1, kept)
    return kept


@pytest.mark.parametrize("name", zoo.HUGGING_FACE)
@pytest.mark.parametrize("boundaries", [[0.5], [1, 3], [4], "auto"], ids=str)
def test_blocks_give_the_bits_of_the_whole_model(name: str, boundaries) -> None:
    model, batch = zoo.make(name), zoo.batch()
    blocks = bz.Blocks(model, boundaries)
    with torch.no_grad():
        whole = model(**batch)
        parts = run_in_blocks(blocks, lambda: model(**batch))
    assert torch.equal(whole.logits, parts.logits)
    assert torch.equal(whole.loss, parts.loss)


@pytest.mark.parametrize("name", zoo.HUGGING_FACE)
def test_no_layer_runs_twice_and_stop_is_early(name: str) -> None:
    model, batch = zoo.make(name), zoo.batch()
    blocks = bz.Blocks(model, [2])
    # how often the layers are called is known from here on
    blocks.run_to_loss(lambda: model(**batch))
    flops, kept = [], None
    for block in range(2):
        with torch.no_grad(), PerturbedForward() as mode:
            kept = blocks.run(lambda: model(**batch), block, block + 1, kept)
        flops.append(mode.flops)
    with torch.no_grad(), PerturbedForward() as whole:
        model(**batch)
    # what little the model does around its layers may run in each block: masks, rotary tables, OPT's input projection
    around = 2 * 33 * 24 * 32 if name == "opt" else 0.02 * whole.flops
    assert sum(flops) == pytest.approx(whole.flops, abs=around)


FIRST_AND_LAST = {
    "opt": (
        ["model.decoder.embed_tokens.weight", "model.decoder.project_in.weight"],
        ["model.decoder.project_out.weight"],
    ),
    "llama": (["model.embed_tokens.weight"], ["model.norm.weight"]),
    "gpt2": (["transformer.wte.weight", "transformer.wpe.weight"], ["transformer.ln_f.weight"]),
    "bloom": (["transformer.word_embeddings_layernorm.weight"], ["transformer.ln_f.weight"]),
    "roberta": (["roberta.embeddings.LayerNorm.weight"], ["lm_head.dense.weight", "lm_head.bias"]),
    "mpnet": (["mpnet.encoder.relative_attention_bias.weight"], ["lm_head.dense.weight"]),
    "distilbert": (["distilbert.embeddings.LayerNorm.weight"], ["vocab_transform.weight"]),
}


@pytest.mark.parametrize("name", FIRST_AND_LAST)
def test_embeddings_go_first_and_heads_last(name: str) -> None:
    blocks = bz.Blocks(zoo.make(name), [2])
    first, last = FIRST_AND_LAST[name]
    assert {n: blocks.layout[n] for n in (*first, *last)} == {**dict.fromkeys(first, 0), **dict.fromkeys(last, 1)}
    assert set(blocks.layout) == {n for n, _ in blocks.model.named_parameters()}


def test_head_alone_can_be_the_last_block() -> None:
    blocks = bz.Blocks(zoo.make("llama"), "head")
    assert blocks.starts == bz.Blocks(zoo.make("llama"), [4]).starts == [0, 4]
    assert [n for n, b in blocks.layout.items() if b == 1] == ["model.norm.weight"]


def test_layers_of_tuples_and_in_place_work_leave_kept_activations_alone() -> None:
    model, ids = zoo.TupleModel(), torch.arange(12).view(2, 6)
    blocks = bz.Blocks(model, [2], example={"ids": ids})
    with torch.no_grad():
        kept = blocks.run(lambda: model(ids), 0, 1)
        before = kept.outputs[0][0].clone()
        first = blocks.run(lambda: model(ids), 1, 2, kept)
        second = blocks.run(lambda: model(ids), 1, 2, kept)
        assert torch.equal(kept.outputs[0][0], before) and torch.equal(first, second) and torch.equal(first, model(ids))
    assert blocks.layout["embed.weight"] == 0 and "head.weight" not in blocks.layout


def test_sequential() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    blocks = bz.Blocks(model, [1, 3])
    assert list(blocks.layout.values()) == [0, 0, 1, 1, 2, 2]
    with torch.no_grad():
        assert torch.equal(run_in_blocks(blocks, lambda: model(x)), model(x))


def test_nothing_of_the_model_is_left_changed() -> None:
    model, batch = zoo.make("opt"), zoo.batch()
    blocks = bz.Blocks(model, [2])
    model.config.use_cache = True
    kept = blocks.run(lambda: model(**batch), 0, 1)

    def fail() -> None:
        raise RuntimeError("loss")

    with pytest.raises(RuntimeError, match="loss"):
        blocks.run(fail, 1, 2, kept)
    assert model.config.use_cache is True
    for layer in blocks.layers:
        assert "forward" not in layer.__dict__ and not layer._forward_hooks


@pytest.mark.parametrize(
    ("boundaries", "text"),
    [
        ([0], "boundary 0"),
        ([5], "layer numbers in"),
        ([2, 2], "strictly increasing"),
        ([1.5], "fractions"),
        ("half", "auto"),
    ],
)
def test_bad_boundaries(boundaries, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        bz.Blocks(zoo.make("llama"), boundaries)


def test_models_without_one_list_of_layers() -> None:
    with pytest.raises(ValueError, match="no list of two or more equal layers"):
        bz.Blocks(nn.Linear(2, 2), "auto")
    two = nn.ModuleDict({k: nn.ModuleList(nn.Linear(3, 3) for _ in range(3)) for k in ("encoder", "decoder")})
    with pytest.raises(ValueError, match="more than one list"):
        bz.Blocks(two)
    assert len(bz.Blocks(two, [1], layers="decoder").layers) == 3
    with pytest.raises(ValueError, match="expected the name of a list"):
        bz.Blocks(two, [1], layers="middle")


def test_a_model_that_does_not_run_its_layers_is_named() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))

        def forward(self, x):
            return self.layers[3](self.layers[0](x))

    model = Skips()
    with pytest.raises(ValueError, match="without running layer 1"):
        bz.Blocks(model, [2]).run(lambda: model(torch.zeros(1, 3)), 0, 1)


def test_a_layer_that_is_new_since_the_cut_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    zo = bz.ZO(model, lambda m, x: m(x).square().mean())
    zo.step(torch.ones(2, 4))
    model.append(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"parameter '2.weight' was .* not there when .* make a new bz.ZO"):
        zo.step(torch.ones(2, 4))
