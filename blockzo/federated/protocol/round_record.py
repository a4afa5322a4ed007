"""From the replies of a round to its record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from blockzo.federated.protocol.addresses import step_directions
from blockzo.federated.protocol.combine import Contribution, combine, weights_of
from blockzo.federated.protocol.examples import Counts, most_of, widths, wrong_counts
from blockzo.federated.protocol.messages import Reply
from blockzo.federated.protocol.records import make_record, sign_coefficient
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.journal.record import Record, check_record, float32

_LARGEST_LOSS = 1e6


def scalar_limit(settings: RunSettings, policy: RoundPolicy, block: int) -> float:
    """Largest scalar that can be: a change of the loss over eps, divided by the directions as the methods do."""
    return policy.largest_loss_change / (settings.eps[block] * max(1, settings.directions[block]))


def problem_of(reply: Reply, slot: int, settings: RunSettings, policy: RoundPolicy, clients: int = 1) -> str | None:
    """Why a reply, or the mean of so many clients, cannot be taken, or None."""
    most = policy.most_examples
    if settings.per_example:
        most = min(most, settings.local_steps * settings.per_example)
    if not 0 < reply.examples <= clients * most:
        return f"{reply.examples} examples; expected 1 to {clients * most}"
    if not abs(reply.loss) <= _LARGEST_LOSS or not all(map(math.isfinite, reply.scalars)):
        return "the loss or a scalar is not finite, or the loss is absurd"
    if settings.own_directions and reply.slot != slot:
        return f"slot {reply.slot}; this client was given {slot}"
    wrong = wrong_counts(settings, reply.counts)
    if wrong is not None:
        return wrong
    private = settings.private
    # with central noise a reply is cut instead: a refusal would take all that its other units say with it
    if not settings.combining.signs and not (private is not None and private.mode == "central"):
        for block, sizes in _by_direction(reply, settings):
            # examples have shares of one slope; noise has a whole one for each
            size, limit = (math.fsum if private is None else max)(sizes), scalar_limit(settings, policy, block)
            if not size <= limit:
                return f"a scalar is {size:g}; larger than {limit:g}, a change of the loss that cannot be"
    return None


def _by_direction(reply: Reply, settings: RunSettings) -> Iterator[tuple[int, list[float]]]:
    """Sizes of the scalars along each of a method's directions: one, or one an example; with the block."""
    at = 0
    for place, width in enumerate(widths(settings, reply.counts)):
        block = place % settings.blocks
        for _ in range(settings.directions[block]):
            each = width // settings.directions[block]
            yield block, [abs(scalar) for scalar in reply.scalars[at : at + each]]
            at += each


def round_record(settings: RunSettings, number: int, replies: Sequence[Reply]) -> tuple[Record, int]:
    """What all replies of a round say together, and the rows behind it. Does not depend on their order."""
    rates = settings.rates(number)
    given = [Contribution(r.scalars, r.examples, r.loss, r.slot, r.counts) for r in replies]
    shares = weights_of(given, settings)
    loss = math.fsum(share * c.loss for share, c in zip(shares, given, strict=True))
    directions: list[list[int]] = [[] for _ in settings.directions]
    coefficients: list[list[float]] = [[] for _ in settings.directions]
    # own directions: every client's scalars with their share; shared ones: one scalar for all
    parts: list[tuple[int, float, tuple[float, ...], Counts]]
    if not settings.own_directions:
        counts = most_of([c.counts for c in given])
        parts = [(0, 1.0, tuple(_together(settings, given)), counts)]
    else:
        parts = sorted((c.slot, share, c.scalars, c.counts) for share, c in zip(shares, given, strict=True))
    for slot, share, scalars, counts in parts:
        at = 0
        for step in range(settings.local_steps):
            examples = counts[step] if counts else 0
            for block, moved in enumerate(step_directions(settings, number, slot, step, examples)):
                count = len(moved)
                directions[block] += moved
                size = sign_coefficient(settings, block, rates[block])
                scale = size if settings.combining.signs else rates[block] * share
                # no -0.0: a sign's bit cannot tell it, and it would turn a weight of -0.0 to 0.0 on the server alone
                coefficients[block] += [float32(scale * s) + 0.0 for s in scalars[at : at + count]]
                at += count
    numbers = [tuple(d) for d in directions]
    record = check_record(make_record(settings, number, loss, numbers, [tuple(c) for c in coefficients], rates))
    return record, sum(c.examples for c in given)


def _together(settings: RunSettings, given: Sequence[Contribution]) -> list[float]:
    private = settings.private
    # in a secure sum the clients have added the noise
    if private is not None and private.mode == "central" and not settings.secure_sum:
        return private.noisy_mean([c.scalars for c in given], settings.scalars)
    return combine(given, settings)
