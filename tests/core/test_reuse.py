"""Kept activations: right with reuse where the loss allows it, run whole and said where not, looked at in every step."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blockzo as bz
from blockzo.optim import reuse
from blockzo.perturb.losses import LossFunction
from tests.core import zoo

IDS = zoo.batch(4, 9)["input_ids"]
METHODS = [bz.SPZO(1, 2), bz.SPZO(1, 2, "crossed"), bz.SPZO(1, 2, "decoupled"), bz.SPZO(2, 2, one_sided=True)]


def lm(model: nn.Module, ids: Tensor, **options: Any) -> Any:
    return model(input_ids=ids, labels=ids, **options)


def once(model: nn.Module, ids: Tensor) -> Tensor:
    return lm(model, ids).loss


def micro_batches(model: nn.Module, ids: Tensor) -> Tensor:
    return sum(once(model, part) for part in ids.split(2)) / 2


def uneven(model: nn.Module, ids: Tensor) -> Tensor:
    return (3 * once(model, ids[:3]) + once(model, ids[3:, :5])) / 4


def preference(model: nn.Module, ids: Tensor) -> Tensor:
    return -F.logsigmoid(5 * (once(model, ids[2:]) - once(model, ids[:2])))


def two_towers(model: nn.Module, ids: Tensor) -> Tensor:
    states = [lm(model, part).logits.mean(1) for part in (ids[:2], ids[2:])]
    one, two = (F.normalize(state, dim=-1) for state in states)
    return F.cross_entropy(one @ two.t() / 0.05, torch.arange(2))


def hidden_states(model: nn.Module, ids: Tensor) -> Tensor:
    return sum(state.pow(2).mean() for state in lm(model, ids, output_hidden_states=True).hidden_states)


def generated(model: nn.Module, ids: Tensor) -> Tensor:
    """Two greedy tokens by hand, without a cache: the second call's input is the first one's result."""
    longer = torch.cat([ids, lm(model, ids).logits[:, -1:].argmax(-1)], 1)
    return once(model, longer)


def generated_with_cache(model: nn.Module, ids: Tensor) -> Tensor:
    out = model.generate(
        ids[:, :4], max_new_tokens=3, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    return torch.stack(out.scores).float().logsumexp(-1).mean()


def recurrent(model: nn.Module, ids: Tensor) -> Tensor:
    """The second pass reads what the first one left, so its first block depends on the second block's move."""
    state = lm(model, ids, output_hidden_states=False).logits.mean(1, keepdim=True)
    embedded = model.get_input_embeddings()(ids) + state[..., :1]
    return model(inputs_embeds=embedded, labels=ids).loss


def refused_by_a_try(model: nn.Module, ids: Tensor) -> Tensor:
    try:
        return once(model, ids)
    except Exception:
        return torch.tensor(0.0)


CONTINUED = [once, micro_batches, uneven, preference, two_towers, refused_by_a_try]
WHOLE = [hidden_states, generated, generated_with_cache, recurrent]


def stepped(
    model: nn.Module, loss: LossFunction, batch: Any, method: Any, cut: Any, **options: Any
) -> tuple[bz.StepResult, bz.ZO, list[str]]:
    zo = bz.ZO(model, loss, method, bz.Blocks(model, cut), lr=1e-3, eps=1e-2, seed=5, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = zo.step(batch)
    return result, zo, [str(one.message) for one in caught if "kept activations" in str(one.message)]


def expected_losses(model: nn.Module, zo: bz.ZO, result: bz.StepResult, loss: LossFunction, batch: Any) -> list[float]:
    """Of copies of the model whose weights are moved."""
    noise, found = bz.Noise(result.seed), []
    for moves in zo.method_of(result.record).tree(len(zo.blocks)).leaf_moves():
        other = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                for move in moves:
                    if zo.blocks.layout[name] == move.block:
                        z = noise.sample(name, parameter.shape, move.direction)
                        parameter += move.sign * zo.eps[move.block] * z
            found.append(float(loss(other, batch)))
    return found


def check(model: nn.Module, loss: LossFunction, batch: Any, method: Any, cut: Any, **options: Any) -> list[str]:
    before = copy.deepcopy(model)
    result, zo, said = stepped(model, loss, batch, method, cut, **options)
    wanted = expected_losses(before, zo, result, loss, batch)
    spread = max(wanted) - min(wanted)
    assert result.losses == pytest.approx(wanted, rel=1e-5, abs=0.01 * spread)
    return said


WAYS = list(zip(METHODS, ([2], "head", [3], 0.75), strict=True))


@pytest.mark.parametrize(
    ("max_group", "ways"),
    [
        pytest.param(1, WAYS[::2], id="alone"),
        pytest.param("auto", WAYS[1::2], id="in groups"),
        # every loss meets every method above
        pytest.param(1, WAYS[1::2], id="others alone", marks=pytest.mark.slow),
        pytest.param("auto", WAYS[::2], id="others in groups", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("loss", [*CONTINUED, *WHOLE], ids=lambda f: f.__name__)
def test_losses_are_those_of_moved_copies(loss: LossFunction, max_group: Any, ways: list[tuple[Any, Any]]) -> None:
    for method, cut in ways:
        said = check(zoo.make("llama"), loss, IDS, method, cut, max_group=max_group)
        # said once, with the price, and only where it is so
        assert len(said) == (loss in WHOLE)
        assert all("every evaluation runs the whole model" in text for text in said)


def test_several_blocks_continue_from_each_other() -> None:
    for loss in (micro_batches, uneven):
        assert not check(zoo.make("gpt2"), loss, IDS, bz.Tree((1, 2, 2)), [1, 3])
    assert check(zoo.make("gpt2"), hidden_states, IDS, bz.Tree((1, 2, 2)), [1, 3])


class Shared(nn.Module):
    """Layers that are used twice: one after the other (ALBERT), or all of them again (a universal transformer)."""

    def __init__(self, order: list[int], in_list: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(96, 8)
        layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)]
        # the same module at several places of the list, or called as often
        self.layers = nn.ModuleList([layers[i] for i in order] if in_list else layers)
        self.order = range(len(order)) if in_list else order
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        for number in self.order:
            hidden = self.layers[number](hidden)
        return self.head(hidden).logsumexp(-1).mean()


@pytest.mark.parametrize(
    ("order", "in_list", "cut", "continues"),
    [
        ([0, 0, 1, 1], False, [1], True),
        ([0, 0, 1, 1], True, [2], True),
        ([0, 1, 0, 1], False, [1], False),
        ([0, 0, 0, 0], True, [2], True),
        ([0, 0, 1], False, "head", True),
    ],
    ids=str,
)
def test_layers_that_are_used_twice(order: list[int], in_list: bool, cut: Any, continues: bool) -> None:
    model = Shared(order, in_list)
    blocks = bz.Blocks(model, cut, layers="layers", example={"ids": IDS})
    before = copy.deepcopy(model)
    zo = bz.ZO(model, lambda m, ids: m(ids), bz.SPZO(1, 2), blocks, lr=1e-3, eps=1e-2, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = zo.step(IDS)
    assert (zo.reuse.reason is None) == continues
    assert result.losses == pytest.approx(expected_losses(before, zo, result, lambda m, ids: m(ids), IDS), rel=1e-5)


def switching(later: LossFunction) -> LossFunction:
    """A loss that changes its way with the data: batches whose first token is 0 go the later one."""

    def loss(model: nn.Module, ids: Tensor) -> Tensor:
        return later(model, ids[:, 1:]) if not ids[0, 0] else once(model, ids[:, 1:])

    return loss


@pytest.mark.parametrize("later", [*CONTINUED[1:5], *WHOLE], ids=lambda f: f.__name__)
def test_a_way_that_changes_later_is_found(later: LossFunction) -> None:
    model, loss = zoo.make("llama"), switching(later)
    zo = bz.ZO(model, loss, bz.SPZO(1, 2), bz.Blocks(model, [2]), lr=1e-3, eps=1e-2, seed=5)
    zo.step(F.pad(IDS, (1, 0), value=1))
    before, batch = copy.deepcopy(model), F.pad(IDS, (1, 0), value=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = zo.step(batch)
    assert result.losses == pytest.approx(expected_losses(before, zo, result, loss, batch), rel=1e-5)
    assert (zo.reuse.reason is not None) == (later in WHOLE)


def test_a_switch_that_shows_nowhere_is_found_when_all_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that a layer leaves for the loss; tensors and other numbers are found before (`test_left.py`)."""
    monkeypatch.setattr(reuse, "AGAIN", 3)
    model = zoo.make("llama")
    seen, weight, own = [0], [0.0], model.model.layers[0].forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        seen[0] = int((output > 0).sum())
        return output

    model.model.layers[0].forward = forward

    def loss(model: nn.Module, ids: Tensor) -> Tensor:
        return once(model, ids) + weight[0] * seen[0]

    zo = bz.ZO(model, loss, bz.SPZO(1, 2), bz.Blocks(model, [2]), lr=1e-3, eps=1e-2, max_group=1)
    zo.step(IDS)
    weight[0] = 0.5
    with pytest.warns(UserWarning, match="kept activations"):
        for _ in range(2):
            zo.step(IDS)


class Remembers(nn.Module):
    """A later layer reads what an earlier one left on the module in the last call: right only if nothing ran between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.side: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            hooked = layer(x)
            if number == 0 and not getattr(layer, "kept", False):
                self.side = self.layers[0].weight.detach().sum() + layer(x * 0.5).mean()
            x = torch.tanh(hooked)
        return (x + self.side).pow(2).mean()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_state_that_layers_leave_for_later_ones(method: Any) -> None:
    check(Remembers(), lambda m, x: m(x), torch.randn(3, 6), method, [2])


def test_flops_are_those_that_run() -> None:
    """Pairs of losses of micro-batches: first blocks once a sign, second blocks once a loss; whole where it must be."""
    for loss, shares in ((micro_batches, (2, 8)), (hidden_states, (8, 8))):
        model = zoo.make("gpt2")
        blocks = bz.Blocks(model, [2])
        one = bz.cost(blocks, bz.MeZO(), batch=IDS, loss_fn=loss)
        result, _, _ = stepped(model, loss, IDS, bz.SPZO(1, 4), [2], max_group=1)
        first, second = one.block_flops
        assert result.flops == pytest.approx(shares[0] * first + shares[1] * second, rel=0.15)
        assert bz.cost(bz.Blocks(model, [2]), bz.SPZO(1, 4), batch=IDS, loss_fn=loss).flops == pytest.approx(
            result.flops, rel=0.05
        )


def test_the_planner_sees_the_price(tmp_path: Any) -> None:
    model = zoo.make("gpt2")
    start = bz.digest(model)
    blocks = bz.Blocks(model, [2, "head"])
    journal = bz.Journal.create(tmp_path / "run.bz", base_digest=start, layout=blocks.layout)
    zo = bz.ZO(model, hidden_states, "auto", blocks, journal=journal)
    with pytest.warns(UserWarning, match="kept activations"):
        for _ in range(4):
            zo.step(IDS)
    assert zo.planner is not None and zo.planner.whole
    assert zo.planner._cost(2, 10) == pytest.approx(10 * sum(zo.planner.costs))
    journal.close()
    again = zoo.make("gpt2")
    with bz.Journal.resume(tmp_path / "run.bz") as journal:
        resumed = bz.ZO(again, hidden_states, "auto", bz.Blocks(again, [2, "head"]), journal=journal)
    assert resumed.planner is not None and resumed.planner.whole and bz.digest(again) == bz.digest(model)


def test_in_place_evaluation_is_right_too() -> None:
    for loss in (uneven, hidden_states, generated):
        check(zoo.make("gpt2"), loss, IDS, bz.SPZO(1, 2), [2], evaluate="in_place")


def test_errors_of_the_loss_are_the_users_own() -> None:
    calls = [0]

    def broken(model: nn.Module, ids: Tensor) -> Tensor:
        calls[0] += 1
        raise KeyError("label")

    model = zoo.make("llama")
    with pytest.raises(KeyError, match="label"):
        bz.ZO(model, broken, bz.SPZO(1, 2), bz.Blocks(model, [2])).step(IDS)


def test_what_fails_once_costs_one_step_and_not_the_reuse() -> None:
    calls, failing = [0], {}

    def loss(model: nn.Module, ids: Tensor) -> Tensor:
        calls[0] += 1
        if failing.get("at") == calls[0]:
            raise OSError("a disk was away")
        return once(model, ids)

    model = zoo.make("llama")
    zo = bz.ZO(model, loss, bz.SPZO(1, 2), bz.Blocks(model, [2]), max_group=1)
    zo.step(IDS)
    failing["at"] = calls[0] + 3
    with pytest.warns(UserWarning, match="failed once.*a disk was away"):
        first = zo.estimate(IDS)
    failing.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = zo.estimate(IDS)
    assert zo.reuse.reason is None
    assert first.losses == pytest.approx(again.losses, rel=1e-6)
    assert zo.step(IDS).flops < 2 * bz.cost(zo.blocks, bz.SPZO(1, 2), batch={"input_ids": IDS, "labels": IDS}).flops


def test_rows_that_are_many_or_few_change_nothing() -> None:
    """Batches of another number of micro-batches: more calls than when the way was tried, or fewer."""

    def loss(model: nn.Module, ids: Tensor) -> Tensor:
        return sum(once(model, part) for part in ids.split(1)) / len(ids)

    model = zoo.make("llama")
    zo = bz.ZO(model, loss, bz.SPZO(1, 2), bz.Blocks(model, [2]), lr=1e-3, eps=1e-2, seed=5)
    for rows in (2, 4, 1, 3):
        before = copy.deepcopy(model)
        result = zo.step(IDS[:rows])
        wanted = expected_losses(before, zo, result, loss, IDS[:rows])
        assert result.losses == pytest.approx(wanted, rel=1e-5) and zo.reuse.reason is None
