"""All operations, once: which function of a backend serves each, and cases that show its bits. `blockzo env` lists them and the
self-test walks them on every backend; a test holds that no public operation is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blockzo.noise import Noise
from blockzo.ops.backends.base import Backend
from blockzo.ops.digest import digest
from blockzo.ops.params import Target
from blockzo.ops.quantized import quantize
from blockzo.ops.steps import joined_steps, make_step

SEED, STREAM, START = 0x0123456789ABCDEF, 0xDEADBEEF, (1 << 34) - 5
Call = Callable[[Backend, Tensor], Tensor]
SCALED = "with scales"


@dataclass(frozen=True)
class Operation:
    """A public operation.

    Attributes:
        name: as `blockzo.ops` has it.
        serves: the function of a backend that serves it; None: torch alone does.
        tolerance: relative to the largest result, where sums may run in another order; None: equal to the bit.
    """

    name: str
    serves: str | None
    tolerance: float | None = None


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("perturb_", "perturb_"),
        Operation("shift_", "shift_"),
        Operation("update_", "replay_"),
        Operation("replay_", "replay_"),
        Operation("fill_", "perturb_"),
        Operation("project", "project"),
        Operation("perturbed_copy", "perturbed_copy"),
        Operation("perturbed_rows", "perturbed_rows"),
        Operation("perturbed_linear", "perturbed_linear", tolerance=1e-5),
        Operation("digest", None),
    )
}


def cases(distribution: str, per_weight: bool = True) -> Iterator[tuple[Operation, str, Call]]:
    """For every operation that a backend serves: the operation, the case's name, what it makes of a tensor on a backend.

    Args:
        per_weight: with cases of weights that have a scale each.
    """
    for name, found in _cases(distribution).items():
        operation = OPERATIONS[name]
        for case, call in found.items():
            if per_weight or not case.startswith(SCALED):
                yield operation, f"{name} {case}".strip(), call


def _cases(distribution: str) -> dict[str, dict[str, Call]]:
    """Operation -> case -> what it makes of a tensor on a backend."""
    noise, following = Noise(SEED, distribution), Noise(SEED + 1, distribution)
    one, unit = make_step(noise, [3], [0.3]), make_step(noise, [3], [1.0])
    several = make_step(noise, [0, 5, 1 << 31], [0.3, -1e-3, 0.7])
    decayed = make_step(following, [2, 1], [1e-3, -0.2], factor=0.99609375)
    stochastic = make_step(following, [2, 1], [1e-3, -0.2], factor=0.99609375, stochastic=True)

    members = [Noise(SEED + k, distribution) for k in range(19)]
    seeds = joined_steps(members, [3] * 19, [0.1 - 0.01 * k for k in range(19)], 0.99609375)

    def changed(operation: str, *arguments: Any) -> Call:
        def call(backend: Backend, tensor: Tensor) -> Tensor:
            getattr(backend, operation)([Target("w", STREAM, tensor)], *arguments)
            return tensor

        return call

    def scaled(operation: str, *arguments: Any, mask: bool = False) -> Call:
        """A few weights have a scale of 0."""

        def call(backend: Backend, tensor: Tensor) -> Tensor:
            scales = torch.arange(tensor.numel(), device=tensor.device) % 5
            scales = scales > 0 if mask else (scales / 4).to(torch.bfloat16)
            target = Target("w", STREAM, tensor, per_weight=scales.view(tensor.shape))
            getattr(backend, operation)([target], *arguments)
            return tensor

        return call

    def filled(backend: Backend, tensor: Tensor) -> Tensor:
        backend.perturb_([Target("w", STREAM, tensor.zero_())], unit)
        return tensor

    def copied(backend: Backend, tensor: Tensor) -> Tensor:
        out = torch.empty_like(tensor)
        backend.perturbed_copy(out, tensor, START, one, STREAM)
        return out

    def rows(backend: Backend, tensor: Tensor) -> Tensor:
        weight = tensor.view(1, -1).repeat(3, 1)
        out = weight.new_empty(4, tensor.numel())
        backend.perturbed_rows(out, weight, torch.tensor([2, 0, 0, 1], device=tensor.device), one, STREAM)
        return out

    def projected(backend: Backend, tensor: Tensor) -> Tensor:
        return torch.tensor(backend.project([Target("w", STREAM, tensor)], several), dtype=torch.float64)

    def linear(tokens: int, bits: int | None = None) -> Call:
        """Three groups of so many tokens; `bits`: of a quantised weight."""

        def call(backend: Backend, tensor: Tensor) -> Tensor:
            # small beside the noise, so that wrong noise is far outside the tolerance
            weight = tensor.view(1, -1).repeat(5, 1) / 64
            x = torch.linspace(-1, 1, 3 * tokens * tensor.numel(), device=tensor.device).to(tensor.dtype)
            x = x.view(3, tokens, tensor.numel())
            held = weight if bits is None else quantize(weight, bits)
            bias = torch.arange(5, device=tensor.device, dtype=tensor.dtype)
            return backend.perturbed_linear(x, held, bias, START if bits is None else 0, several, STREAM)

        return call

    return {
        "perturb_": {"": changed("perturb_", one), SCALED: scaled("perturb_", one)},
        "shift_": {"": changed("shift_", several), SCALED: scaled("shift_", several, mask=True)},
        "update_": {
            "": changed("replay_", [decayed]),
            "stochastic": changed("replay_", [stochastic]),
            "of several seeds": changed("replay_", seeds),
            SCALED: scaled("replay_", seeds),
        },
        "fill_": {"": filled},
        "replay_": {
            "": changed("replay_", [several, decayed, one]),
            "stochastic": changed("replay_", [several, stochastic]),
            SCALED: scaled("replay_", [several, stochastic], mask=True),
        },
        "project": {"": projected},
        "perturbed_copy": {"": copied},
        "perturbed_rows": {"": rows},
        "perturbed_linear": {
            "few tokens": linear(2),
            "many tokens": linear(400),
            "8 bits": linear(2, 8),
            "4 bits": linear(2, 4),
        },
    }


def _digest() -> str:
    values = {"w": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}
    found = digest(values)
    return "" if found == DIGEST else f"found {found}, expected {DIGEST}"


DIGEST = "bz1-b0bdbc5300d342790f1ab9bbeebf886cc8093db3e07893d4f69149b5b9000952"
KNOWN: dict[str, Callable[[], str]] = {"digest": _digest}
"""Operations that torch alone serves -> a known answer: "" where it is right."""
