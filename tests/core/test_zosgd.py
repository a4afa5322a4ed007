"""`ZOSGD` in loops that are written for torch.optim: the bits of `ZO`, schedulers, states, momentum without stored velocity."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from blockzo.optim import ZOSGD
from blockzo.optim.repeatable import NotRepeatable

X, Y = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 16).view(16, 1)
LR, EPS = 1e-2, 1e-2


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 1)).to(dtype)


def loss_of(net: nn.Module) -> Tensor:
    dtype = next(net.parameters()).dtype
    return nn.functional.mse_loss(net(X.to(dtype)), Y.to(dtype))


def steps(optimizer: torch.optim.Optimizer, net: nn.Module, count: int = 4) -> list[float]:
    return [float(optimizer.step(lambda: loss_of(net))) for _ in range(count)]


def test_moves_of_16_bits_are_rounded_as_told() -> None:
    def loss(net: nn.Module) -> Tensor:
        return (net(X.bfloat16()).float() - Y).square().mean()

    found = {}
    for moved in ("float32", "rounded"):
        net, other = model(torch.bfloat16), model(torch.bfloat16)
        optimizer = ZOSGD(net.named_parameters(), LR, 1e-3, seed=7, moved=moved)
        optimizer.step(lambda net=net: loss(net))
        zo = bz.ZO(other, lambda m, _: loss(m), lr=LR, eps=1e-3, seed=7, moved=moved, max_group=1)
        found[moved] = zo.step(None).record
        assert optimizer.record.losses == found[moved].losses
    assert found["float32"].losses != found["rounded"].losses
    with pytest.raises(ValueError, match="moved is 'bf16'; expected one of"):
        ZOSGD(net.named_parameters(), moved="bf16")
    with pytest.raises(ValueError, match='moved is "float32" with evaluate="in_place"'):
        ZOSGD(net.named_parameters(), moved="float32", evaluate="in_place")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", [bz.MeZO(), bz.SPSA(3), bz.OneSided(2), bz.FZOO(3)], ids=repr)
def test_the_bits_of_zo(method, dtype: torch.dtype) -> None:
    rank = 2 if isinstance(method, bz.OneSided) else None
    net, other = model(dtype), model(dtype)
    optimizer = ZOSGD(net.named_parameters(), LR, EPS, method, weight_decay=0.1, seed=7, rank=rank)
    zo = bz.ZO(
        other, lambda m, _: loss_of(m), method=method, lr=LR, eps=EPS, weight_decay=0.1, seed=7, max_group=1, rank=rank
    )
    assert steps(optimizer, net) == [zo.step(None).loss for _ in range(4)]
    assert bz.digest(net) == bz.digest(other)


def test_groups_are_blocks() -> None:
    net, other = model(), model()
    groups = [
        {"params": [(f"0.{n}", p) for n, p in net[0].named_parameters()], "lr": LR},
        {"params": [(f"2.{n}", p) for n, p in net[2].named_parameters()], "lr": 2 * LR, "eps": 3 * EPS},
    ]
    optimizer = ZOSGD(groups, eps=EPS)
    blocks = bz.Blocks(other, [2])
    zo = bz.ZO(
        other,
        lambda m, _: loss_of(m),
        method=bz.MeZO(),
        blocks=blocks,
        lr=[LR, 2 * LR],
        eps=[EPS, 3 * EPS],
        max_group=1,
    )
    assert optimizer.layout == blocks.layout
    steps(optimizer, net)
    for _ in range(4):
        zo.step(None)
    assert bz.digest(net) == bz.digest(other)
    steps(ZOSGD(groups, LR, method=bz.SPZO(outer=1, inner=2)), net)


def test_it_learns() -> None:
    net = model()
    losses = steps(ZOSGD(net.named_parameters(), 3e-2, EPS, bz.SPSA(4)), net, 100)
    assert losses[-1] < 0.5 * losses[0]


def test_a_scheduler_sets_the_rate_of_the_records() -> None:
    net = model()
    optimizer = ZOSGD(net.named_parameters(), LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    rates = []
    for _ in range(3):
        steps(optimizer, net, 1)
        rates.append(optimizer.record.lr[0])
        schedule.step()
    assert rates == [LR, LR / 2, LR / 4]


@pytest.mark.parametrize(("momentum", "beta2"), [(0.0, 0.0), (0.8, 0.0), (0.8, 0.9)])
def test_a_state_goes_on(momentum: float, beta2: float, tmp_path: Path) -> None:
    def make(net: nn.Module) -> ZOSGD:
        return ZOSGD(net.named_parameters(), LR, seed=3, momentum=momentum, window=3, beta2=beta2)

    net = model()
    optimizer = make(net)
    steps(optimizer, net, 3)
    torch.save([net.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    steps(optimizer, net, 3)
    weights, state = torch.load(tmp_path / "state.pt")
    resumed = model()
    resumed.load_state_dict(weights)
    again = make(resumed)
    again.load_state_dict(state)
    steps(again, resumed, 3)
    assert bz.digest(resumed) == bz.digest(net)
    renamed = ZOSGD([(f"other.{n}", p) for n, p in resumed.named_parameters()])
    with pytest.raises(ValueError, match="the state is of parameters"):
        renamed.load_state_dict(state)


@pytest.mark.parametrize("window", [100, 2])
def test_momentum_is_that_of_torch(window: int) -> None:
    """With the gradients written out, torch.optim.SGD walks the same way; a window of two forgets what is older."""
    net, other = model(), model()
    optimizer = ZOSGD(net.named_parameters(), LR, EPS, momentum=0.8, window=window, seed=5)
    by_hand = torch.optim.SGD(other.parameters(), LR, momentum=0.8)
    before: dict[str, Tensor] = {}
    for step in range(5):
        other.load_state_dict(net.state_dict())
        loss = optimizer.step(lambda: loss_of(net))
        noise = bz.Noise(bz.optim.step.step_seed(5, step))
        directional = {}
        for sign in (1, -1):
            moved = copy.deepcopy(other)
            bz.perturb_(moved, noise, sign * EPS)
            directional[sign] = float(loss_of(moved).detach())
        slope = (directional[1] - directional[-1]) / (2 * EPS)
        gradients = {name: slope * noise.sample(name, p.shape) for name, p in other.named_parameters()}
        if window == 2:
            by_hand.state.clear()
            wanted = {name: g + 0.8 * before.get(name, torch.zeros_like(g)) for name, g in gradients.items()}
        else:
            wanted = gradients
        before = gradients
        for name, p in other.named_parameters():
            p.grad = wanted[name]
        by_hand.step()
        assert abs(loss - sum(directional.values()) / 2) < 1e-5
        for mine, its in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
    assert optimizer.record is None and len(optimizer.state_dict()["state"]["run"]["past"]) == min(5, window - 1)


@pytest.mark.parametrize("beta1", [0.0, 0.8])
def test_the_second_moment_is_that_of_adam(beta1: float) -> None:
    """Along one direction of signs the gradient's square is one number: torch's AdamW with the gradients written out agrees."""
    net, other = model(), model()
    optimizer = ZOSGD(net.named_parameters(), LR, EPS, momentum=beta1, beta2=0.9, seed=5, weight_decay=0.1)
    by_hand = torch.optim.AdamW(other.parameters(), LR, betas=(beta1, 0.9), weight_decay=0.1)
    for step in range(6):
        noise, ends = bz.Noise(bz.optim.step.step_seed(5, step)), []
        for sign in (1, -1):
            moved = copy.deepcopy(other)
            bz.perturb_(moved, noise, sign * EPS)
            ends.append(float(loss_of(moved).detach()))
        steps(optimizer, net, 1)
        for name, p in other.named_parameters():
            p.grad = (ends[0] - ends[1]) / (2 * EPS) * noise.sample(name, p.shape)
        by_hand.step()
        for mine, its in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-4)
    moments = optimizer.state_dict()["state"]["run"]["moments"]
    assert len(moments) == 1 and moments[0][1] == pytest.approx(1 - 0.9**6)


def test_second_moments_belong_to_groups_and_a_journal_holds_their_steps(tmp_path: Path) -> None:
    """A loss a thousand times as steep makes the same steps, in each group by itself; and they replay."""
    found = []
    for steep in (1.0, 1000.0):
        net = model()
        groups = [{"params": [(f"{k}.{n}", p) for n, p in net[k].named_parameters()]} for k in (0, 2)]
        layout = {f"{k}.{n}": place for place, k in enumerate((0, 2)) for n, _ in net[k].named_parameters()}
        with bz.Journal.create(tmp_path / f"{steep}.bz", bz.digest(net), layout) as journal:
            optimizer = ZOSGD(groups, LR, EPS, bz.SPZO(outer=1, inner=2), beta2=0.9, journal=journal)
            for _ in range(3):
                optimizer.step(lambda net=net, steep=steep: steep * loss_of(net))
        rebuilt = model()
        bz.replay_(rebuilt, bz.Journal.open(tmp_path / f"{steep}.bz").records(), layout)
        assert bz.digest(rebuilt) == bz.digest(net)
        found.append(net)
    for one, two in zip(found[0].parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_in_place_is_the_same_but_for_roundings() -> None:
    net, other = model(), model()
    kept, moved = (
        ZOSGD(m.named_parameters(), LR, EPS, bz.SPSA(2), evaluate=e, momentum=0.5)
        for m, e in ((net, "perturbed"), (other, "in_place"))
    )
    torch.testing.assert_close(steps(kept, net), steps(moved, other), rtol=1e-4, atol=1e-5)
    for mine, its in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("evaluate", ["perturbed", "in_place"])
def test_a_step_that_fails_leaves_the_weights(evaluate: str) -> None:
    net = model()
    optimizer = ZOSGD(net.named_parameters(), LR, evaluate=evaluate, check=False)
    before, calls = copy.deepcopy(net), []

    def closure() -> float:
        calls.append(1)
        return float("nan") if len(calls) > 1 else 0.0

    with pytest.raises(ValueError, match="the loss is nan at block 0 direction 0 sign -1"):
        optimizer.step(closure)
    for mine, its in zip(net.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=0 if evaluate == "perturbed" else 1e-6)
    with pytest.raises(ValueError, match="without a closure"):
        optimizer.step()


def test_weights_are_not_written_while_losses_are_taken() -> None:
    net, seen = model(torch.bfloat16), []
    optimizer = ZOSGD(net.named_parameters(), LR, check=False)

    def closure() -> Tensor:
        with torch._C.DisableTorchFunction():
            seen.append([p.detach().clone() for p in net.parameters()])
        return loss_of(net)

    optimizer.step(closure)
    assert len(seen) == 2 and all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_dropout_is_found() -> None:
    net = nn.Sequential(model(), nn.Dropout(0.5))
    with pytest.raises(NotRepeatable):
        ZOSGD(net.named_parameters(), LR).step(lambda: loss_of(net))


def test_frozen_parameters_rest_and_names_may_be_left_out() -> None:
    net, other = model(), model()
    for m in (net, other):
        m[0].requires_grad_(False)
    unnamed = ZOSGD(net.parameters(), LR)
    named = ZOSGD([("2", other[2].weight), ("3", other[2].bias)], LR)
    steps(unnamed, net)
    steps(named, other)
    assert torch.equal(net[0].weight, model()[0].weight) and not torch.equal(net[2].weight, model()[2].weight)
    assert bz.digest(net) == bz.digest(other)


def test_a_journal_replays_to_the_weights(tmp_path: Path) -> None:
    net, rebuilt = model(), model()
    layout = dict.fromkeys(dict(net.named_parameters()), 0)
    with bz.Journal.create(tmp_path / "run.bz", bz.digest(net), layout) as journal:
        steps(ZOSGD(net.named_parameters(), LR, weight_decay=0.1, journal=journal), net)
    bz.replay_(rebuilt, bz.Journal.open(tmp_path / "run.bz").records())
    assert bz.digest(rebuilt) == bz.digest(net)
    with pytest.raises(ValueError, match="several seeds"):
        ZOSGD(net.named_parameters(), LR, momentum=0.9, journal=journal)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"evaluate": "elsewhere"}, "evaluate is"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"beta2": 1.0}, "beta2 is 1.0"),
        ({"distribution": "uniform"}, "distribution is"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ZOSGD(model().named_parameters(), **arguments)


def test_two_parameters_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two parameters have one name"):
        ZOSGD([("w", nn.Parameter(torch.ones(3))), ("w", nn.Parameter(torch.ones(3)))])
