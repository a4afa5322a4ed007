"""What holds for every method that is registered, on the settings that it names itself (`Method.examples`)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import blockzo as bz
from blockzo.methods import METHODS, Method, by_option, described, registered
from blockzo.optim.step import step_seed
from tests.core import zoo
from tests.zoo.harness import Reference

CUTS: dict[int, list[int]] = {1: [], 2: [2], 3: [1, 3]}
CASES = [(cls, blocks, method) for cls in METHODS.values() for blocks in CUTS for method in cls.examples(blocks)]


def test_every_method_names_examples() -> None:
    assert {cls for cls, _, _ in CASES} == set(METHODS.values())


@pytest.mark.parametrize(("cls", "blocks", "method"), CASES, ids=lambda value: str(value))
def test_losses_and_update_are_those_of_materialised_noise(cls: type[Method], blocks: int, method: Method) -> None:
    model, batch = zoo.make("llama"), zoo.batch()
    cut = bz.Blocks(model, CUTS[blocks])
    zo = bz.ZO(model, method=method, blocks=cut, lr=1e-2, eps=[1e-2 * (1 + b) for b in range(blocks)], seed=3)
    reference = Reference(
        model, cut.layout, bz.Noise(step_seed(3, 0), "rademacher"), zo.eps, lambda m, b: m(**b).loss, batch
    )
    expected = [reference(moves) for moves in method.tree(blocks).leaf_moves()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost = bz.cost(cut, method, batch=batch)
    result = zo.step(batch)
    torch.testing.assert_close(torch.tensor(result.losses), torch.tensor(expected), rtol=2e-5, atol=2e-5)
    assert result.flops == cost.flops and result.forwards <= method.evaluations(blocks)
    # the rule is a function of losses and eps alone, and the update is replay's
    assert result.scalars == method.scalars(result.losses, zo.eps)
    after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(before)
    bz.replay_(model, [result.record], cut.layout)
    assert all(torch.equal(tensor, after[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("cls", "blocks", "method"), CASES, ids=lambda value: str(value))
def test_a_description_builds_the_method_again(cls: type[Method], blocks: int, method: Method) -> None:
    told = method.describe()
    assert described({k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}) == method
    assert method.default_blocks() == blocks or cls.blocks in (None, blocks)


@pytest.mark.parametrize(("cls", "blocks", "method"), CASES, ids=lambda value: str(value))
def test_linear_methods_are_linear_in_the_losses(cls: type[Method], blocks: int, method: Method) -> None:
    eps = [1e-2] * blocks
    draw = torch.Generator().manual_seed(1)
    count = method.tree(blocks).leaves
    one, two = (torch.rand(count, generator=draw, dtype=torch.float64).tolist() for _ in range(2))
    both = method.scalars([a + 2 * b for a, b in zip(one, two, strict=True)], eps)
    apart = zip(method.scalars(one, eps), method.scalars(two, eps), strict=True)
    expected = [{k: a[k] + 2 * b[k] for k in a} for a, b in apart]
    agrees = all(found == pytest.approx(wanted, abs=1e-9) for found, wanted in zip(both, expected, strict=True))
    assert agrees == cls.linear


def test_docs_have_a_row_for_every_method() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)\(", page, re.MULTILINE))
    assert rows == set(METHODS), "docs/methods.md: one row a method, beginning with its call"


def test_options_are_told_apart() -> None:
    assert by_option()["mezo"] is METHODS["MeZO"] and "" not in by_option()
    with pytest.raises(TypeError, match="the name is taken"):
        registered(METHODS["MeZO"])


def test_a_public_name_of_every_method() -> None:
    for name, cls in METHODS.items():
        assert getattr(bz, name) is cls
