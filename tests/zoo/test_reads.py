"""However a loss reads a weight, it sees it moved, or the step is refused in words."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import blockzo as bz
from blockzo.ops.params import whole_targets
from blockzo.optim import ZOSGD
from blockzo.perturb import hidden, hidden_reads, parameters
from blockzo.perturb.losses import evaluation_mode
from blockzo.perturb.values import MovedValues
from tests.zoo import harness, reads
from tests.zoo.architectures import ARCHITECTURES, batch, jitter, make

BOTH = {**reads.RIGHT, **reads.REFUSED}


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return jitter(kind(), 0.1)


@pytest.fixture(params=[0, 1 << 14], ids=["large", "small"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrices here are tiny: they are treated once as the large ones they stand for, once as the small they are."""
    monkeypatch.setattr(parameters, "SMALL", request.param)
    monkeypatch.setattr(hidden, "WHOLE", max(1, request.param))  # a scalar has no rows


@pytest.mark.parametrize(
    ("group", "size"),
    [
        (1, 1 << 14),
        (4, 0),
        pytest.param(1, 0, marks=pytest.mark.slow),
        pytest.param(4, 1 << 14, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("way", BOTH)
def test_every_way_of_reading_a_weight(way: str, group: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "SMALL", size)
    monkeypatch.setattr(hidden, "WHOLE", size)
    kind, loss = BOTH[way]
    model = made(kind)
    found = harness.step(model, loss, reads.rows(), bz.SPSA(2), bz.Blocks(model, []), eps=0.05, max_group=group)
    assert found.kind == ("right" if way in reads.RIGHT else "refused"), found


@pytest.mark.parametrize("way", reads.REFUSED)
def test_in_place_is_for_what_is_refused(way: str) -> None:
    kind, loss = reads.REFUSED[way]
    model = made(kind)
    zo = bz.ZO(model, loss, blocks=bz.Blocks(model, []), eps=0.05, evaluate="in_place")
    result = zo.step(reads.rows())
    assert len(set(result.losses)) == 2


@pytest.mark.parametrize("way", reads.WRITES)
def test_a_loss_that_writes_weights_is_refused_before_it_does(way: str, sizes: None) -> None:
    model, loss = made(reads.Net), reads.WRITES[way]
    before = harness.bits(model)
    refused = r"on parameter '.*' inside a perturbed forward, which would write the weight; use evaluate=\"in_place\""
    with pytest.raises(ValueError, match=refused):
        bz.ZO(model, loss, blocks=bz.Blocks(model, [])).step(reads.rows())
    with pytest.raises(ValueError, match=refused):
        ZOSGD(model.named_parameters()).step(lambda: loss(model, reads.rows()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in harness.bits(model).items())


def test_a_parameter_that_the_loss_replaces_is_named() -> None:
    def replaced(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        m.last.weight = nn.Parameter(m.last.weight.detach() / 2)
        return reads.plain(m, x)

    model = made(reads.Net)
    with pytest.raises(ValueError, match=r"another tensor in the place of parameter 'last.weight' of the model"):
        bz.ZO(model, replaced, blocks=bz.Blocks(model, [])).step(reads.rows())


def names_of(model: nn.Module, loss: reads.Loss, data: object) -> list[str]:
    before = harness.bits(model)
    with evaluation_mode(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = hidden_reads(whole_targets(model, "this test"), lambda: loss(model, data))
    assert all(torch.equal(tensor, before[name]) for name, tensor in harness.bits(model).items())
    return found


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("scripted", ["inner.0.weight", "inner.0.bias"]),
        ("traced", ["inner.0.weight", "inner.0.bias"]),
        ("one_layer_in_another_thread", ["first.weight", "first.bias"]),
        ("switched_off", ["second.weight", "second.bias"]),
        ("pointer_kept", ["first.weight"]),
        ("another_thread", ["first.weight", "first.bias", "second.weight", "second.bias"]),
    ],
)
def test_what_is_read_past_the_mode_is_named(way: str, expected: list[str], sizes: None) -> None:
    kind, loss = reads.REFUSED[way]
    assert names_of(made(kind), loss, reads.rows()) == expected


def test_queries_that_are_read_past_the_mode_are_named(sizes: None) -> None:
    """torch's fast attention makes zeros of scores that are all NaN."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.rest = torch.jit.script(nn.Linear(8, 8)), nn.Linear(8, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            key, value = self.rest(x).chunk(2, -1)
            heads = (part.view(1, 1, 5, 8) for part in (self.query(x), key, value))
            return torch.nn.functional.scaled_dot_product_attention(*heads)[0, 0, :, :3]

    assert names_of(made(Attention), reads.plain, reads.rows()) == ["query.weight", "query.bias"]


def test_what_is_not_seen_beside_another_is_named(sizes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two is seen where it is tried alone."""
    monkeypatch.setattr(MovedValues, "lower_all", lambda self, tensor: tensor)
    found = names_of(made(reads.Net), reads.weights_by_weights, reads.rows())
    assert found == ([] if parameters.SMALL else ["first.weight", "first.bias", "second.weight", "second.bias"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "deepseek_v3", "t5", "wav2vec2"])
def test_no_false_alarm(name: str, dtype: torch.dtype, sizes: None) -> None:
    model = make(name).to(dtype)
    data = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch(name).items()}
    assert names_of(model, lambda m, b: m(**b).loss, data) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_false_alarm_in_the_whole_zoo(name: str, sizes: None) -> None:
    if name != "rwkv":  # it writes its weights
        assert names_of(make(name), lambda m, b: m(**b).loss, batch(name)) == []


def test_later_paths_are_tried_while_parameters_are_unused() -> None:
    """A scripted expert that the first batches do not reach."""

    class Experts(reads.Net):
        def __init__(self) -> None:
            super().__init__()
            self.expert = torch.jit.script(nn.Linear(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.expert(x) if x.sum() > 1000 else x)

    model = made(Experts)
    zo = bz.ZO(model, reads.plain, blocks=bz.Blocks(model, []), lr=1e-6)
    with pytest.warns(UserWarning, match="2 trainable parameters are not used"):
        zo.step(reads.rows())
    for _ in range(3):
        zo.step(reads.rows())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"reads parameter 'expert.weight', 'expert.bias' in a way .* freeze it"):
        zo.step(reads.rows() + 1000)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_is_kept_is_one_piece_of_memory() -> None:
    """In many strips it would stay with the process when it is freed: 30 MiB on RoBERTa-large."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3))
    places = [hidden._places(p.detach()) for p in model.parameters()]
    room = hidden._room(places)
    assert [part.shape for part in room] == [place.shape for place in places]
    assert len({part.untyped_storage().data_ptr() for part in room}) == 1
    for at, part in enumerate(room):
        part.fill_(at)
    assert all((part == at).all() for at, part in enumerate(room)), "two overlap"
