"""What a federated run is, the same for every participant; what the server decides alone is `RoundPolicy`'s."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from blockzo.contract import CONTRACT, DISTRIBUTIONS, ROUNDING_DIRECTION, check_moved, check_rank
from blockzo.federated.privacy.noise_shares import check_shares
from blockzo.federated.privacy.settings import PrivacySettings
from blockzo.federated.protocol.aggregates import Aggregate, aggregate_of, names_with
from blockzo.federated.protocol.aggregates.trimmed_mean import TrimmedMean
from blockzo.federated.protocol.auto import auto_of
from blockzo.federated.protocol.round_policy import RoundPolicy
from blockzo.journal.outside import MOST_BLOCKS, MOST_EVALUATIONS, MOST_SCALARS, build, shown
from blockzo.journal.record import float32
from blockzo.methods import METHODS
from blockzo.optim.schedules import factor

__all__ = ["PROTOCOL", "WEIGHTINGS", "RoundPolicy", "RunSettings", "run_tag"]
PROTOCOL = 1
WEIGHTINGS = ("examples", "equal")
MOST_EXAMPLES = 1 << 14
"""Of a client's local step, where each has directions of its own."""


def _numbers(name: str, values: tuple[float, ...], blocks: int, lowest: float) -> None:
    if len(values) != blocks or not all(math.isfinite(float32(v)) and v >= lowest for v in values):
        raise ValueError(
            f"{name} is {shown(values)}; expected {blocks} finite float32 numbers, one a block, of {lowest} or more"
        )


@dataclass(frozen=True)
class RunSettings:
    """What all participants must agree on; a message of a run with other settings is refused.

    Attributes:
        run: 32 hexadecimal digits that name the run; seeds are derived from it.
        method: `method.describe()` of blockzo, for example {"name": "SPZO", "outer": 1, "inner": 4, "variant": "coupled"}.
        directions: perturbations of each block in one local step, as the method makes them.
        rounds: as many as the schedule spans.
        lr, eps: of each block.
        schedule, warmup: of the learning rate over the rounds (blockzo.optim.schedules).
        distributions: of each block's noise.
        weight_decay: decoupled, once a round, times the rate.
        local_steps: estimates in a round; a client moves on its own between them, and goes back.
        own_directions: every client has directions of its own; else all share them, and scalars are combined one by one.
        aggregate: how scalars of shared directions are combined, a name of `blockzo.federated.protocol.aggregates`.
        trim: share of the clients that "trimmed-mean" leaves out at either end of every scalar.
        weighting: "examples" (as FedAvg, McMahan et al. 2017) or "equal"; of aggregates that weigh, "mean" and "sign".
        pool: directions that a run has in all, in each block; 0: new ones every round. With a pool the weights are the base less
            a sum over it (FedKSeed, arXiv 2312.06353), so that whoever was away for long loads that many numbers at most.
        rebase: rounds after which a pool's weights are made from the base again, rounded once.
        privacy: settings of `blockzo.federated.privacy.settings.PrivacySettings`; None: no clipping, no noise.
        secure_sum: clients hide their scalars, loss and number of examples under masks that cancel in the sum (docs/privacy.md),
            and sign what they promise one another with long-term keys; "unsigned": without, so that a server that does not follow
            the protocol could invent clients.
        aggregate_options: of the aggregate; what is left out has its default.
        per_example: examples of a client's local step at most, each of which has directions of its own
            (blockzo.federated.protocol.examples); 0: the examples of a batch share their directions.
        rank: of the noise of matrices; None: full.
        moved: how clients multiply moved 16-bit weights, as of `blockzo.ZO`; with "auto" each as is fastest there, so that
            estimates of different machines differ by that rounding.
    """

    run: str
    method: Mapping[str, Any]
    directions: tuple[int, ...]
    rounds: int
    lr: tuple[float, ...]
    eps: tuple[float, ...]
    schedule: str = "constant"
    warmup: int = 0
    distributions: tuple[str, ...] = ("rademacher",)
    weight_decay: float = 0.0
    stochastic_rounding: bool = False
    local_steps: int = 1
    own_directions: bool = False
    aggregate: str = "mean"
    trim: float = 0.25
    weighting: str = "examples"
    pool: int = 0
    rebase: int = 100
    privacy: Mapping[str, Any] | None = None
    secure_sum: bool | str = False
    aggregate_options: Mapping[str, Any] = field(default_factory=dict)
    per_example: int = 0
    rank: int | None = None
    moved: str = "auto"

    def __post_init__(self) -> None:
        for name in ("directions", "lr", "eps", "distributions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "method", dict(self.method))
        blocks = len(self.directions)
        for name, lowest, most in (
            ("rounds", 1, (1 << 32) - 2),
            ("local_steps", 1, MOST_SCALARS),
            ("warmup", 0, 1 << 32),
            ("pool", 0, MOST_SCALARS),
            ("rebase", 1, 1 << 32),
            ("per_example", 0, MOST_EXAMPLES),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= most:
                raise ValueError(f"{name} is {shown(value)}; expected an integer from {lowest} to {most}")
        check_rank(self.rank)
        check_moved(self.moved)
        if len(self.distributions) == 1:
            object.__setattr__(self, "distributions", self.distributions * blocks)
        if len(self.run) != 32 or not set(self.run) <= set("0123456789abcdef"):
            raise ValueError(f"run is {shown(self.run)}; expected 32 hexadecimal digits (secrets.token_hex(16))")
        if not blocks or not any(self.directions) or any(not isinstance(n, int) or n < 0 for n in self.directions):
            raise ValueError(
                f"directions is {shown(self.directions)}; expected a number for each block, not all of them 0"
            )
        if blocks > MOST_BLOCKS or sum(self.directions) > MOST_EVALUATIONS or self.scalars > MOST_SCALARS:
            raise ValueError(
                f"{blocks} blocks with {sum(self.directions)} directions in each of {self.local_steps} local steps"
                f"{f' for each of {self.per_example} examples' if self.per_example else ''}; expected at most {MOST_BLOCKS} "
                f"blocks, {MOST_EVALUATIONS} directions and {MOST_SCALARS} scalars in a round"
            )
        _numbers("lr", self.lr, blocks, 0.0)
        _numbers("eps", self.eps, blocks, 1e-30)
        if len(self.distributions) != blocks or not set(self.distributions) <= set(DISTRIBUTIONS):
            raise ValueError(
                f"distributions is {shown(self.distributions)}; expected {blocks} of {', '.join(DISTRIBUTIONS)}"
            )
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting is {shown(self.weighting)}; expected one of {', '.join(WEIGHTINGS)}")
        # also where another aggregate does not use it
        TrimmedMean(self.trim)
        combining = self.combining
        object.__setattr__(self, "aggregate_options", combining.options())
        decays = [self.weight_decay, *(lr * self.weight_decay for lr in self.lr)]
        if not all(math.isfinite(float32(d)) and d >= 0 for d in decays):
            raise ValueError(
                f"weight_decay is {self.weight_decay}; expected 0 or more, finite in float32 times every rate"
            )
        if self.local_steps * max(self.numbered) > ROUNDING_DIRECTION:
            raise ValueError(
                f"{self.local_steps} local steps of {self.numbered} directions; the noise contract numbers "
                f"{ROUNDING_DIRECTION}: take fewer of either"
            )
        if self.own_directions and not combining.own_directions:
            raise ValueError(
                f"aggregate is {self.aggregate!r} with own directions, where every scalar comes from one client; "
                f"expected one of {names_with('own_directions')}, or shared directions"
            )
        if self.per_example and not combining.own_directions:
            raise ValueError(
                f"aggregate is {self.aggregate!r} with per_example, where a scalar is one example's share of a slope: "
                f"expected one of {names_with('own_directions')}, or no per_example"
            )
        if self.local_steps > 1 and not combining.local_steps:
            raise ValueError(
                f"aggregate is {self.aggregate!r} with {self.local_steps} local steps; expected 1, or one of "
                f"{names_with('local_steps')}"
            )
        if self.pool and self.stochastic_rounding:
            raise ValueError(
                "a pool has one seed for all rounds, and would round alike in each; leave stochastic_rounding out"
            )
        if self.pool and (self.weight_decay or self.pool < self.local_steps * max(self.numbered)):
            raise ValueError(
                f"pool is {self.pool} with weight_decay {self.weight_decay} and {self.local_steps} local steps of "
                f"{self.numbered} directions; expected no decay, and at least as many as a round draws"
            )
        if not isinstance(self.secure_sum, bool) and self.secure_sum != "unsigned":
            raise ValueError(f'secure_sum is {self.secure_sum!r}; expected True, False or "unsigned"')
        if self.secure_sum and (not combining.secure_sum or self.own_directions):
            raise ValueError(
                f"secure_sum with aggregate {self.aggregate!r}, own_directions {self.own_directions}: the server sees the sum "
                f"over shared directions alone; expected one of {names_with('secure_sum')}, and False, or no secure_sum"
            )
        factor(self.schedule, 0, self.rounds, self.warmup)
        if self.planned:
            self._check_planned()
        if self.privacy is not None:
            private = PrivacySettings.from_dict(self.privacy)
            self._check_accounted(private)
            object.__setattr__(self, "privacy", private.as_dict())

    def _check_planned(self) -> None:
        """Refuses what a planner's rounds do not have: it needs the losses of all clients, at the directions that it chose."""
        auto, _ = auto_of(self.method)
        assert isinstance(auto.costs, tuple)
        if len(auto.costs) != self.blocks or not set(self.directions) <= {0, auto.most}:
            raise ValueError(
                f"directions is {shown(self.directions)} with {len(auto.costs)} costs of a planner; expected {auto.most} for "
                "each block that can be moved, 0 for others, and a cost each"
            )
        if not all(1e-30 <= eps * bound <= 1e6 for eps in self.eps for bound in auto.eps_range):
            raise ValueError(f"eps is {shown(self.eps)} in a range of {auto.eps_range}; expected 1e-30 to 1e6")
        given = {
            "local_steps": self.local_steps > 1, "own_directions": self.own_directions, "pool": self.pool > 0,
            "privacy": self.privacy is not None, "secure_sum": bool(self.secure_sum), "per_example": self.per_example > 0,
            f"aggregate {self.aggregate}": self.aggregate != "mean",
        }  # fmt: skip
        if any(given.values()):
            raise ValueError(
                f"a planner (method Auto) with {', '.join(name for name, told in given.items() if told)}; it learns from mean "
                "losses of all clients, one estimate a round along shared directions: leave these out, or name a method"
            )

    def _check_accounted(self, private: PrivacySettings) -> None:
        """Refuses runs for which the accounting does not hold."""
        if self.weighting != "equal":
            raise ValueError(
                f"weighting is {self.weighting!r}; a client's number of examples is private too and would scale its influence: "
                'privacy needs weighting="equal"'
            )
        if private.mode == "central" and (not self.combining.central_noise or self.own_directions):
            raise ValueError(
                f"aggregate is {self.aggregate!r}, own_directions {self.own_directions}; noise added by the server is calibrated "
                f'to a sum over shared directions: expected one of {names_with("central_noise")}, and False (or mode="local")'
            )
        method = METHODS.get(str(self.method.get("name")))
        if private.unit == "example" and (self.local_steps > 1 or (method is not None and not method.linear)):
            raise ValueError(
                f"unit is 'example' with {self.local_steps} local steps of {self.method.get('name')}; an example would change "
                "the scalars of others, through the client's own move or a rule that is not linear in the losses: expected "
                'one local step and another method (or unit="client")'
            )
        if private.unit == "example" and self.per_example not in (0, private.batch):
            raise ValueError(
                f"per_example is {self.per_example} with unit 'example' and a privacy batch of {private.batch}; a row's place in "
                "a batch numbers its directions: expected the same number"
            )
        if self.secure_sum:
            check_shares(private, self.scalars)
        elif private.survivors:
            raise ValueError(f"privacy survivors is {private.survivors} without secure_sum, to which it belongs")

    @property
    def private(self) -> PrivacySettings | None:
        """`privacy` as an object."""
        return None if self.privacy is None else PrivacySettings(**self.privacy)

    @property
    def combining(self) -> Aggregate:
        """`aggregate` as an object."""
        return aggregate_of(self.aggregate, self.aggregate_options, vars(self))

    @property
    def signed_sum(self) -> bool:
        """Do clients sign in the secure sums?"""
        return self.secure_sum is True

    @property
    def blocks(self) -> int:
        return len(self.directions)

    @property
    def planned(self) -> bool:
        """Does a planner choose what every round evaluates?"""
        return self.method.get("name") == "Auto"

    @property
    def numbered(self) -> tuple[int, ...]:
        """Numbers of directions that a client's local step has of each block, at most: perturbations x examples of their own."""
        return tuple(count * max(1, self.per_example) for count in self.directions)

    @property
    def counted(self) -> bool:
        """Does a reply say how many examples it has? Where it would tell what is hidden, there are zeros for those that lack."""
        return bool(self.per_example) and self.privacy is None and not self.secure_sum

    @property
    def scalars(self) -> int:
        """Scalars in a reply at most: local steps x perturbations of all blocks x examples with directions of their own."""
        return self.local_steps * sum(self.numbered)

    @property
    def slots(self) -> int:
        """Participants of a round that can have directions of their own; a message numbers 65,536."""
        if not self.own_directions:
            return 1
        numbers = ROUNDING_DIRECTION // (self.local_steps * max(self.numbered))
        # and one record has to hold the scalars of all
        return min(1 << 16, numbers, max(1, MOST_SCALARS // self.scalars))

    def rates(self, number: int) -> tuple[float, ...]:
        """Learning rate of each block in a round."""
        scale = factor(self.schedule, number, self.rounds, self.warmup)
        return tuple(lr * scale for lr in self.lr)

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        if not self.aggregate_options:
            # a run that has no use for it is the run that it was before this setting
            del found["aggregate_options"]
        if not self.per_example:
            del found["per_example"]
        if self.rank is None:
            del found["rank"]
        if self.moved == "auto":
            del found["moved"]
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSettings:
        """From what `as_dict` gave, by way of JSON.

        Raises:
            ValueError: a setting is missing, unknown or out of range.
        """
        lacking = (
            sorted({f.name for f in fields(cls)} - {"aggregate_options", "per_example", "rank", "moved", *values})
            if isinstance(values, Mapping)
            else []
        )
        if lacking:
            raise ValueError(f"settings lack {', '.join(lacking)} (another version of blockzo?)")
        return build(cls, values, "settings")


def run_tag(settings: RunSettings, base_digest: str, layout: Mapping[str, int]) -> bytes:
    """Eight bytes in every message: another contract, base model, layout or setting gives others."""
    facts = [PROTOCOL, CONTRACT, base_digest, sorted(layout.items()), settings.as_dict()]
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2s(text.encode("utf-8"), digest_size=8, person=b"bz-run").digest()
