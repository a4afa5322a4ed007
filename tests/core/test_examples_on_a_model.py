"""A direction an example on a pretrained model: the squared error of the estimate against the formula, by backpropagation."""

from __future__ import annotations

import pytest
import torch

import blockzo as bz
from benchmarks.comparison import problems
from blockzo.ops.params import named_tensors

ROWS, DRAWS = 16, 24


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model", ["minilm-l6", "smollm2-135m"])
def test_the_squared_error_is_that_of_the_examples_own_gradients(model: str) -> None:
    """d sum_b |g_b|^2 / B^2 + |g|^2 (other terms without d left out) within 15%: `DRAWS` steps of `ROWS` slopes have a standard
    error of 7%. Prints how many times less that is than with shared directions.
    """
    problem = problems.make(model, "sst2", 16, 21, True)
    network, batch = problem.model, problem.batch(0)
    named = named_tensors(network)
    size = sum(tensor.numel() for tensor in named.values())
    gradient = {name: torch.zeros_like(tensor) for name, tensor in named.items()}
    squares = 0.0
    for row in range(ROWS):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        network.zero_grad()
        problem.loss_fn(network, one).backward()
        for name, tensor in named.items():
            if tensor.grad is not None:
                squares += float(tensor.grad.double().square().sum())
                gradient[name] += tensor.grad / ROWS
    network.zero_grad()
    whole = sum(float(g.double().square().sum()) for g in gradient.values())
    zo = bz.ZO(network, problem.loss_fn, bz.MeZO(), bz.Blocks(network, []), lr=1.0, eps=1e-3, per_example=True)
    found = 0.0
    for step in range(DRAWS):
        zo.step_number = step
        record = zo.estimate(batch).record
        (update,) = record.blocks
        estimate = {name: torch.zeros_like(tensor) for name, tensor in named.items()}
        noise = bz.Noise(record.seed, record.distribution)
        bz.update_(estimate, noise, list(update.coefficients), list(update.directions))
        # what is applied is minus the estimate at rate 1
        found += sum(float((estimate[n] + gradient[n]).double().square().sum()) for n in named) / DRAWS
    formula = size * squares / ROWS**2 + whole
    ratio = ROWS * whole / (squares / ROWS)
    print(
        f"\n{model}: squared error {found:.4g}, formula {formula:.4g}; shared directions would have {ratio:.2f} times it"
    )
    assert found == pytest.approx(formula, rel=0.15)
