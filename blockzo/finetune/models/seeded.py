"""First weights of adapters by the noise contract, the same on every device and version of torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blockzo.noise import Noise, rounding_bits


class _Draws(TorchDispatchMode):
    """Makes torch's random numbers by the contract: draw n has streams 2n and 2n + 1 of the seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.noise, self.drawn = Noise(seed, "gaussian"), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        kwargs.pop("generator", None)
        if name in ("uniform_", "normal_"):
            target = args[0]
            bounds = dict(zip(("from", "to") if name == "uniform_" else ("mean", "std"), (0.0, 1.0), strict=True))
            bounds |= dict(zip(bounds, args[1:], strict=False)) | kwargs
            first, second = bounds.values()
            values = self._values(target, name)
            # each operation rounds on its own, in float32
            moved = values * (second - first) + first if name == "uniform_" else values * second + first
            return target.copy_(moved)
        if name in ("rand", "randn"):
            target = torch.empty(args[0], **kwargs)
            return target.copy_(self._values(target, "uniform_" if name == "rand" else "normal_"))
        raise ValueError(
            f"the adapter's first weights are drawn by torch's {name}, which the noise contract does not make; expected "
            "uniform or normal numbers: make the adapter with peft.get_peft_model, and keep its first weights beside the journal"
        )

    def _values(self, target: Tensor, name: str) -> Tensor:
        stream, self.drawn = 2 * self.drawn, self.drawn + 1
        if target.is_meta:
            return target
        shape, device = target.shape, target.device
        if name == "normal_":
            return self.noise.sample(stream, shape, device=device)
        high, low = (rounding_bits(0, target.numel(), self.noise.seed, s, device) for s in (stream, stream + 1))
        return ((high << 8 | low >> 8).to(torch.float32) * 2.0**-24).reshape(shape)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Uniform and normal numbers that torch draws inside come from the noise contract, in the order of the draws.

    Raises:
        ValueError: something is drawn otherwise (by `randperm`, say).
    """
    with _Draws(seed):
        yield
