"""Steps of all kinds along noise of a low rank, for tests of every backend."""

from __future__ import annotations

from blockzo.noise import Noise
from blockzo.ops.steps import Step, joined_steps, make_step


def steps_of(noise: Noise, shape: tuple[int, int], stochastic: bool = False) -> list[Step]:
    steps = [
        make_step(noise, [0, 5, 2**32 - 2], [0.3, -1e-3, 0.7], 0.99609375, stochastic),
        make_step(Noise(1, noise.distribution, noise.rank), [3], [0.0], 1.0, stochastic),
        make_step(Noise(2, noise.distribution, noise.rank), [], [], 0.5),
        *joined_steps(
            [Noise(9 + k, noise.distribution, noise.rank) for k in range(5)],
            [0, 1, 0, 2, 0],
            [0.1] * 5,
            0.5,
            stochastic,
        ),
        make_step(Noise(3, noise.distribution, noise.rank), [3], [1e-2], 1.0, stochastic),
    ]
    return [step.of_shape(shape) for step in steps]
