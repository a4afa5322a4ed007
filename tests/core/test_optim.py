"""The optimiser: steps, journals and replay agree to the bit; bad input leaves the weights as they were."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import blockzo as bz
from blockzo.ops.params import named_tensors
from blockzo.optim.executor import PerturbedExecutor
from blockzo.perturb.passes import kept_bytes
from tests.core import zoo


def schedule(step: int) -> list[float]:
    return [1e-2 / (step + 1), 3e-2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stochastic", [False, True])
def test_replay_gives_the_bits_of_training(dtype: torch.dtype, stochastic: bool, tmp_path: Path) -> None:
    model, batch = zoo.make("llama").to(dtype), zoo.batch()
    base = copy.deepcopy(model)
    blocks = bz.Blocks(model, [2])
    with bz.Journal.create(tmp_path / "j", bz.digest(model), blocks.layout) as journal:
        zo = bz.ZO(
            model,
            method=bz.SPZO(2, 2),
            blocks=blocks,
            lr=schedule,
            weight_decay=0.1,
            stochastic_rounding=stochastic,
            distribution="gaussian",
            journal=journal,
        )
        for _ in range(5):
            zo.step(batch)
            journal.add_digest(bz.digest(model))
        journal.finish(bz.digest(model))
    again = bz.Journal.open(tmp_path / "j")
    again.verify()
    assert again.final_digest == bz.digest(model) != again.base_digest
    bz.replay_(base, again.records(), again.layout)
    assert bz.digest(base) == bz.digest(model)


def test_resume_continues_with_the_same_bits(tmp_path: Path) -> None:
    batch = zoo.batch()

    def train(steps: int, journal: bz.Journal | None) -> nn.Module:
        model = zoo.make("opt")
        zo = bz.ZO(model, method=bz.SPZO(1, 2), lr=1e-2, seed=3, journal=journal)
        while zo.step_number < steps:
            zo.step(batch)
        return model

    whole = train(6, None)
    layout = bz.Blocks(zoo.make("opt")).layout
    with bz.Journal.create(tmp_path / "j", bz.digest(zoo.make("opt")), layout) as journal:
        train(2, journal)
    with bz.Journal.resume(tmp_path / "j") as journal:
        assert len(journal) == 2
        assert bz.digest(train(6, journal)) == bz.digest(whole)


def test_estimate_then_apply_is_a_step() -> None:
    batch = zoo.batch()
    one, two = zoo.make("gpt2"), zoo.make("gpt2")
    first, second = bz.ZO(one, lr=1e-2), bz.ZO(two, lr=1e-2)
    before = bz.digest(two)
    record = second.estimate(batch).record
    assert bz.digest(two) == before
    assert first.step(batch).record == record
    second.commit(record)
    assert bz.digest(one) == bz.digest(two)
    with pytest.raises(ValueError, match="expected step 1"):
        second.commit(record)


@pytest.mark.parametrize("evaluate", ["perturbed", "in_place"])
def test_a_loss_that_is_not_finite_changes_nothing(evaluate: str, tmp_path: Path) -> None:
    model, batch = zoo.make("llama"), zoo.batch()
    calls = 0

    def loss(m: nn.Module, b: dict) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return m(**b).loss * (float("nan") if calls == bad else 1.0)

    # the first step begins with two calls that must agree, a perturbed one with a third: are weights read past it?
    bad = 5 if evaluate == "perturbed" else 4
    layout = bz.Blocks(model, []).layout
    before = copy.deepcopy(model.state_dict())
    with bz.Journal.create(tmp_path / "j", layout=layout, exact=evaluate == "perturbed") as journal:
        zo = bz.ZO(model, loss, evaluate=evaluate, journal=journal, max_group=1)
        with pytest.raises(ValueError, match="loss is nan at block 0 direction 0 sign -1"):
            zo.step(batch)
        assert len(journal) == 0
    tolerance = 0.0 if evaluate == "perturbed" else 1e-6
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=tolerance)


def test_model_is_evaluated_without_dropout_and_left_in_its_mode() -> None:
    model, batch = zoo.make("bert"), zoo.batch()
    model.train()
    model.bert.embeddings.eval()
    zo = bz.ZO(model)
    assert zo.estimate(batch) == zo.estimate(batch)
    assert model.training and not model.bert.embeddings.training


def test_tied_and_tuple_model_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = zoo.TupleModel(), torch.arange(12).view(2, 6)
    blocks = bz.Blocks(model, [2], example={"ids": ids})
    zo = bz.ZO(model, zoo.tuple_loss, bz.SPZO(2, 2, "crossed"), blocks, lr=0.05, eps=1e-2)
    losses = [zo.step(ids).loss for _ in range(150)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert model.head.weight is model.embed.weight


def test_a_parameter_used_before_its_block_has_all_run_whole() -> None:
    model, ids = zoo.TupleModel(), torch.arange(6).view(1, 6)
    blocks = bz.Blocks(model, [2])
    blocks.layout["embed.weight"] = 1
    with pytest.warns(UserWarning, match=r"'embed.weight' belongs to block 1 but the model uses it in block 0"):
        bz.ZO(model, zoo.tuple_loss, bz.SPZO(), blocks).step(ids)


def test_unused_parameters_are_named_once() -> None:
    model = zoo.make("gpt2")
    model.extra = nn.Parameter(torch.zeros(3))
    zo = bz.ZO(model)
    with pytest.warns(UserWarning, match="1 trainable parameters are not used by the loss .extra"):
        zo.step(zoo.batch())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zo.step(zoo.batch())


def test_frozen_parameters_are_not_touched() -> None:
    model, batch = zoo.make("llama"), zoo.batch()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = model.model.embed_tokens.weight.clone()
    bz.ZO(model, method=bz.SPZO(1, 2), lr=1.0).step(batch)
    assert torch.equal(model.model.embed_tokens.weight, before)
    model.model.embed_tokens.weight.requires_grad_(True)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"lr": [1e-3, 1e-3]}, "lr has 2 entries for 1 blocks"),
        ({"lr": -1.0}, "not negative"),
        ({"lr": float("nan")}, "finite"),
        ({"eps": 0.0}, "positive"),
        ({"eps": 1e-60}, "positive"),
        ({"distribution": "uniform"}, "rademacher"),
        ({"seed": -1}, "seed"),
        ({"evaluate": "somehow"}, "in_place"),
    ],
)
def test_bad_settings(settings: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        bz.ZO(zoo.make("gpt2"), **settings)


def test_bad_losses_and_models() -> None:
    model, batch = zoo.make("gpt2"), zoo.batch()
    with pytest.raises(ValueError, match="one element"):
        bz.ZO(model, lambda m, b: m(**b).logits).step(batch)
    with pytest.raises(ValueError, match="a str"):
        bz.ZO(model, lambda m, b: "1.0").step(batch)
    for own in (False, True):
        with pytest.raises(ValueError, match=r"complex64; expected real numbers"):
            bz.ZO(model, lambda m, b: m(**b).logits.mean((1, 2)) * 1j, per_example=own).step(batch)
    with pytest.raises(ValueError, match=r"bool; expected real numbers"):
        bz.ZO(model, lambda m, b: m(**b).loss > 0).step(batch)
    with pytest.raises(ValueError, match="float64"):
        bz.ZO(copy.deepcopy(model).double())
    with pytest.raises(ValueError, match="another model"):
        bz.ZO(model, blocks=bz.Blocks(zoo.make("gpt2")))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        bz.ZO(model)


def test_journals_of_other_runs_are_refused(tmp_path: Path) -> None:
    model = zoo.make("gpt2")
    layout = bz.Blocks(model, []).layout
    with (
        bz.Journal.create(tmp_path / "a", "bz1-other", layout) as journal,
        pytest.raises(bz.JournalError, match="load the base"),
    ):
        bz.ZO(model, journal=journal)
    with bz.Journal.create(tmp_path / "b", None, {"x": 0}) as journal, pytest.raises(bz.JournalError, match="layout"):
        bz.ZO(model, journal=journal)
    with (
        bz.Journal.create(tmp_path / "c", None, layout) as journal,
        pytest.raises(bz.JournalError, match="exact=False"),
    ):
        bz.ZO(model, journal=journal, evaluate="in_place")


class Seen(torch.Tensor):
    """A loss that tells when the host looks at it; so do tensors that are made of it."""

    events: list[str] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", str(func))
        if name in ("cpu", "tolist", "item", "numpy", "__float__", "__bool__", "__int__", "__index__"):
            cls.events.append(name)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("evaluate", ["perturbed", "in_place"])
@pytest.mark.parametrize("method", [bz.MeZO(), bz.OneSided(3), bz.SPZO(1, 3), bz.SPZO(2, 2, "decoupled")], ids=repr)
def test_losses_are_read_together_at_the_end(method: bz.Method, evaluate: str) -> None:
    # on a GPU every look at a loss waits for all work before it
    model, batch = zoo.make("llama"), zoo.batch()
    zo = bz.ZO(model, lambda m, b: _told(m(**b).loss), method=method, evaluate=evaluate, max_group=1)
    zo.step(batch)  # checks look at losses of their own
    Seen.events.clear()
    result = zo.step(batch)
    losses = Seen.events.count("loss")
    assert losses == result.forwards > 1
    assert Seen.events[: losses + 1] == ["loss"] * losses + ["cpu"]
    assert Seen.events.count("cpu") == 1
    plain = bz.ZO(zoo.make("llama"), method=method, evaluate=evaluate, max_group=1)
    plain.step(batch)
    assert result.losses == plain.step(batch).losses


@pytest.mark.parametrize("evaluate", ["perturbed", "in_place"])
def test_a_loss_may_be_a_buffer_that_the_next_one_overwrites(evaluate: str) -> None:
    batch, buffer = zoo.batch(), torch.zeros(())
    given = {"method": bz.SPZO(1, 2), "evaluate": evaluate, "max_group": 1}
    reused = bz.ZO(zoo.make("llama"), lambda model, b: buffer.copy_(model(**b).loss), **given).step(batch)
    assert reused.losses == bz.ZO(zoo.make("llama"), **given).step(batch).losses
    assert len(set(reused.losses)) == len(reused.losses)


def _told(loss: torch.Tensor) -> torch.Tensor:
    Seen.events.append("loss")
    return loss.as_subclass(Seen)


class Ran:
    """Watches an executor: runs of each block, bytes of weights its batches read, most bytes kept between blocks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: nn.Module, blocks: bz.Blocks) -> None:
        self.runs, self.reads, self.peak = [0] * len(blocks), 0, 0
        names = named_tensors(model, trainable_only=False)
        kept: dict[int, int] = {}
        run = PerturbedExecutor._run

        def watched(executor, forward, paths, before, part, *rest):
            node = part[0][1].node
            for block in range(node.first, node.stop):
                self.runs[block] += len(part)
                self.reads += sum(t.nbytes for n, t in names.items() if blocks.places[n] == block)
            self.peak = max(self.peak, sum(size for stop, size in kept.items() if stop <= node.first))
            output, mode = run(executor, forward, paths, before, part, *rest)
            kept[node.stop] = kept_bytes(output.tree()) if node.stop < len(blocks) else 0
            return output, mode

        monkeypatch.setattr(PerturbedExecutor, "_run", watched)


def test_cost_is_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = zoo.make("llama"), zoo.batch()
    for method in (bz.MeZO(), bz.SPZO(1, 4), bz.SPZO(2, 2, "crossed"), bz.SPZO(1, 3, "decoupled"), bz.OneSided(3)):
        zo = bz.ZO(model, method=method)
        cost = bz.cost(zo.blocks, method, batch=batch)
        assert zo.step(batch).flops == cost.flops
        # activations: 3 sequences x 11 tokens x 32 float32 values, after the first block of two
        assert cost.activation_bytes == (3 * 11 * 32 * 4 if len(zo.blocks) == 2 else 0)
    # three and more blocks; a block without directions runs once; some weights frozen
    model.model.layers[1].requires_grad_(False)
    blocks = bz.Blocks(model, [1, 2, 3])
    for method in (
        bz.Tree((1, 0, 2, 2)),
        bz.Decoupled((0, 1, 0, 2), centre=True),
        bz.Tree((2, 2, 1, 1), signs="crossed"),
    ):
        for group in (1, 3):
            zo = bz.ZO(model, method=method, blocks=blocks, max_group=group)
            zo.estimate(batch)  # the first group of a model is checked against evaluations alone
            ran = Ran(monkeypatch, model, blocks)
            cost = bz.cost(blocks, method, batch=batch, max_group=group)
            result = zo.step(batch)
            assert result.flops == cost.flops and ran.runs == cost.forwards_per_block
            assert (ran.reads, ran.peak) == (cost.weight_reads, cost.activation_bytes)
            monkeypatch.undo()
    shape = bz.cost(model, bz.SPZO(1, 4), (3, 11))
    assert shape.forwards_per_block == [2, 8] and shape.weight_passes == 1.0
    with pytest.raises(ValueError, match="batch_shape"):
        bz.cost(model, bz.MeZO())


def test_cost_without_memory_is_the_same() -> None:
    """On the device "meta", at the first count too: what runs after a block is not counted with it."""

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return (model(x) @ torch.ones(4, 100, device=x.device)).sum()

    found = []
    for device in ("cpu", "meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)).to(device)
        blocks, x = bz.Blocks(model, [1]), torch.ones(5, 4, device=device)
        found.append(bz.cost(blocks, bz.SPZO(1, 4), batch=x, loss_fn=loss).block_flops)
    assert found == [[2 * 5 * 4 * 8, 2 * 5 * (8 * 4 + 4 * 100)]] * 2
