"""A round of shared directions over a secure sum: the server learns the mean scalars and loss, and all examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from blockzo.federated.client import Estimate
from blockzo.federated.combine import Contribution
from blockzo.federated.fixed_point import FixedPoint
from blockzo.federated.secure_sum import SumClient
from blockzo.federated.secure_sum_server import SumServer
from blockzo.federated.settings import RunSettings
from blockzo.federated.sum_messages import SumError, session_of

PHASES = ("advertise", "share", "mask", "unmask")
Lost = Callable[[str, str], bool]
"""(client, phase) -> its message of that phase never arrives."""


def check_secure(settings: RunSettings) -> None:
    """Raises ValueError for runs that need more of the replies than their sum."""
    if settings.aggregate != "mean" or settings.own_directions or settings.privacy is not None:
        raise ValueError(
            f"aggregate is {settings.aggregate!r}, own_directions {settings.own_directions}, privacy {settings.privacy}; a "
            'secure sum gives the mean over shared directions alone: expected "mean", False and None'
        )


def encoded(found: Estimate, settings: RunSettings, fixed: FixedPoint) -> list[int]:
    """n, n x loss, n x every scalar, as integers; n is 1 with equal weighting.

    Raises:
        ValueError: a value is not finite or too large.
    """
    times = found.examples if settings.weighting == "examples" else 1
    if len(found.scalars) != settings.scalars or times < 1:
        raise ValueError(
            f"{len(found.scalars)} scalars from {times} examples; expected {settings.scalars} and 1 or more examples"
        )
    return [fixed.encode(1.0, times), *(fixed.encode(value, times) for value in (found.loss, *found.scalars))]


def decoded(total: Sequence[int], settings: RunSettings, fixed: FixedPoint) -> Contribution:
    """The weighted means that the sum stands for, as one contribution of all survivors.

    Raises:
        SumError: the number of examples is not one; somebody sent nonsense.
    """
    weight, loss, *scalars = total
    if weight < 1 or weight % (1 << fixed.bits):
        raise SumError(f"the sum claims {fixed.decode(weight)} examples; expected a positive whole number")
    return Contribution(tuple(value / weight for value in scalars), weight >> fixed.bits, loss / weight)


@dataclass(frozen=True)
class SecureResult:
    """`combined`: what the server knows; `participants`: whose replies are in it; `up`, `down`: bytes of all clients."""

    combined: Contribution
    participants: tuple[str, ...]
    up: int
    down: int


class SecureRound:
    """Drives one secure sum in one process; the messages are the bytes that would travel.

    Args:
        tag: of the run (`run_tag`).
        number: of the round; with the tag it names the sum.
    """

    def __init__(self, settings: RunSettings, tag: bytes, number: int, fixed: FixedPoint | None = None) -> None:
        check_secure(settings)
        self.settings, self.fixed = settings, fixed or FixedPoint()
        self.session, self.length = session_of(tag, number), 2 + settings.scalars
        self.server = SumServer(self.session, self.length)
        self.up = self.down = 0

    def run(self, estimates: Mapping[str, Estimate], lost: Lost = lambda name, phase: False) -> SecureResult:
        """Sums what the clients found.

        Raises:
            SumError: too few clients came through, or one of them made the sum impossible; nothing was learned.
        """
        if len(estimates) > self.fixed.terms:
            raise ValueError(f"{len(estimates)} clients; the fixed point has room for sums of {self.fixed.terms}")
        server = self.server
        values = {name: encoded(found, self.settings, self.fixed) for name, found in estimates.items()}
        clients = {name: SumClient(self.session, self.length) for name in values}

        def phase(
            which: str, names: Iterable[str], answer: Callable[[str], bytes], take: Callable[[str, bytes], None]
        ) -> None:
            for name in names:
                data = answer(name)
                if not lost(name, which):
                    self.up += len(data)
                    take(name, data)

        phase("advertise", clients, lambda name: clients[name].advertise(), server.advertised)
        sent = self._count(server.roster())
        phase("share", sent, lambda name: clients[name].share(sent[name]), server.dealt)
        dealt = self._count(server.deliveries())
        phase("mask", dealt, lambda name: clients[name].mask(dealt[name], values[name]), server.masked)
        asked = self._count(server.survivors())
        phase("unmask", asked, lambda name: clients[name].unmask(asked[name]), server.unmasked)
        combined = decoded(server.total(), self.settings, self.fixed)
        return SecureResult(combined, tuple(server.survivors_names), self.up, self.down)

    def _count(self, messages: dict[str, bytes]) -> dict[str, bytes]:
        self.down += sum(map(len, messages.values()))
        return messages
