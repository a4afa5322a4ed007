"""Steps shared over real processes (gloo): what they run is tests/core/ranks.py; how trees are cut, here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed
from hypothesis import given
from hypothesis import strategies as st

import blockzo as bz
from blockzo.methods.base import Method
from blockzo.methods.shares import share, spans
from blockzo.methods.tree import EvaluationTree
from tests.together import run_together

# starts processes that talk
pytestmark = pytest.mark.heavy


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
)
# three cannot share evenly what two can
@pytest.mark.parametrize("ranks", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_steps_of_processes(ranks: int, tmp_path: Path) -> None:
    """One group of processes for all checks: starting one costs more than what it checks. The last breaks it."""
    checks = ["directions", "batch", "examples", "errors", "journal", "death"]
    run_together([["tests.core.ranks", rank, ranks, tmp_path, *checks] for rank in range(ranks)])


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
)
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_steps_of_sharded_models(ranks: int, tmp_path: Path) -> None:
    run_together([["tests.core.sharded_ranks", rank, ranks, tmp_path] for rank in range(ranks)])


def test_without_a_process_group_the_error_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="torchrun"):
        bz.DistributedZO(torch.nn.Linear(2, 2))


METHODS = st.one_of(
    st.builds(bz.SPZO, st.integers(1, 3), st.integers(1, 3), st.sampled_from(["coupled", "crossed", "decoupled"])),
    st.builds(bz.SPSA, st.integers(1, 6)),
    st.builds(bz.OneSided, st.integers(1, 6)),
)


def price(tree: EvaluationTree, costs: tuple[float, float]) -> float:
    return sum(sum(costs[node.first : node.stop]) for node in (place.node for place in tree.places))


@given(METHODS, st.integers(1, 9), st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)))
def test_shares_hold_every_leaf_once(method: Method, ranks: int, costs: tuple[float, float]) -> None:
    tree = method.tree(2)
    found = spans(tree, ranks, costs)
    assert len(found) == ranks and found[0][0] == 0 and found[-1][1] == tree.leaves
    assert all(a[1] == b[0] for a, b in zip(found, found[1:], strict=False))
    moves = [leaf for start, stop in found for leaf in share(tree, start, stop).leaf_moves()]
    assert moves == tree.leaf_moves()
    prices = [price(share(tree, start, stop), costs) for start, stop in found]
    assert max(prices) <= price(tree, costs) + 1e-9
    # nobody idles while another has leaves to give away that would cost less
    if ranks >= tree.leaves:
        alone = max(price(share(tree, leaf, leaf + 1), costs) for leaf in range(tree.leaves))
        assert max(prices) <= alone * (1 + 1e-9)


def test_shares_are_even() -> None:
    assert spans(bz.SPSA(4).tree(1), 2, [1.0]) == [(0, 4), (4, 8)]
    assert spans(bz.MeZO().tree(1), 3, [1.0]) == [(0, 1), (1, 2), (2, 2)]
    # the cut falls between the subtrees of the first block, so that neither side runs it twice
    assert spans(bz.SPZO(1, 4).tree(2), 2, [10.0, 1.0]) == [(0, 4), (4, 8)]
    assert [stop - start for start, stop in spans(bz.SPSA(5).tree(1), 3, [1.0])] == [4, 4, 2]
