"""Random numbers that a loss draws and seldom uses: a layer left out in one evaluation of fifty, two evaluations that agree.

Agreement of few evaluations shows little there. So what was drawn is noted, from whatever generator. Where a second evaluation
drew other numbers (no seed was set), the loss is evaluated with the least that could be drawn, and with the most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

UNIFORM = frozenset(("rand", "rand_like", "uniform_"))
NORMAL = frozenset(("randn", "randn_like", "normal", "normal_"))
WHOLE = frozenset(("randint", "randint_like"))
ANSWERS = frozenset(("bernoulli", "bernoulli_"))
DROPS = frozenset(("dropout", "dropout_", "feature_dropout"))
RANDOM = UNIFORM | NORMAL | WHOLE | ANSWERS | DROPS
FAR = 8.0
"""Standard deviations of the least and the most that a normal number is taken for."""
MOST_CALLS = 1000
"""From then on numbers are as they are drawn: a loop may wait for others."""
SEEN = 8
"""Numbers of a draw that are compared."""


class Draws(TorchFunctionMode):
    """Notes what is drawn.

    Args:
        most: in place of what is drawn, hand out the most that could be (True) or the least (False); None: as it is.
    """

    def __init__(self, most: bool | None = None) -> None:
        super().__init__()
        self.most = most
        self.drawn: list[tuple[str, Any]] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in RANDOM or torch.compiler.is_dynamo_compiling():
            return func(*args, **kwargs)
        before = args[0].clone() if name in DROPS and args and isinstance(args[0], Tensor) else None
        generator = kwargs.get("generator") or torch.default_generator
        state = generator.get_state()
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and len(self.drawn) < MOST_CALLS:
            if before is None or not torch.equal(before, result):
                seen = tuple(result.detach().reshape(-1)[:SEEN].double().tolist())
                # answers are alike where they are rare, the generator's states are not
                own = result.device == generator.device
                self.drawn.append((name, hash(state.numpy().tobytes()) if own else seen))
            if self.most is not None:
                self._set(name, args, kwargs, result, before)
        return result

    def _set(self, name: str, args: Any, kwargs: Any, result: Tensor, before: Tensor | None) -> None:
        most = bool(self.most)
        numbers = [one for one in args if isinstance(one, (int, float)) and not isinstance(one, bool)]
        with torch._C.DisableTorchFunction(), torch.no_grad():
            if name in UNIFORM:
                low, high = numbers if name == "uniform_" and len(numbers) == 2 else (0.0, 1.0)
                result.fill_(high - (high - low) * torch.finfo(result.dtype).eps if most else low)
            elif name in NORMAL:
                result.fill_(FAR if most else -FAR)
            elif name in WHOLE and numbers:
                result.fill_(numbers[-1] - 1 if most else numbers[0] if len(numbers) > 1 else 0)
            elif name in ANSWERS:
                chance = next((one for one in (*args[1:], kwargs.get("p")) if isinstance(one, (float, Tensor))), None)
                if chance is None and name == "bernoulli":
                    chance = args[0]
                result.copy_(torch.as_tensor(0.5 if chance is None else chance) >= (1e-30 if most else 1.0))
            elif before is not None and not torch.equal(before, result):
                result.copy_(torch.zeros_like(before) if most else before)


def uses_draws(evaluate: Callable[[], float], first: Draws, second: Draws, alike: Callable[[float], bool]) -> bool:
    """Would other numbers than those that two evaluations drew give another loss? Costs two evaluations where it is asked.

    Args:
        alike: whether a loss is that of the two.
    """
    if first.drawn == second.drawn:
        return False
    for most in (False, True):
        try:
            with Draws(most):
                loss = evaluate()
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:
            continue  # code that draws may not foresee these
        if not alike(loss):
            return True
    return False
