"""What a simulation is told beside the settings of a fine-tune: clients, their data, and how rounds combine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from blockzo.federated.client.partition import PARTITIONS
from blockzo.federated.privacy.settings import PrivacySettings
from blockzo.federated.protocol.settings import AGGREGATES, WEIGHTINGS
from blockzo.federated.secagg.sum_client import threshold_of
from blockzo.finetune import settings as finetune
from blockzo.finetune.errors import UserError
from blockzo.finetune.settings import Settings, differences, refuse
from blockzo.journal.outside import Refusal, build

ENGINES = ("zo", "fedavg")
CLIENTS = 8
FREE_ON_RESUME = finetune.FREE_ON_RESUME - {"steps"} | {"policy"}
"""Settings that may differ when a simulation continues: those of a fine-tune, but not its rounds; and what clients ask for."""


@dataclass(frozen=True)
class Federation:
    """The federated part of a simulation.

    Attributes:
        engine: "zo" (seeds and scalars) or "fedavg" (first-order baseline: clients backpropagate, weights travel).
        clients: virtual clients; where None, 8, and with partition "column" as many as it has values.
        sample: clients asked in a round; all where None.
        partition: "iid", "dirichlet", "label" or "column".
        alpha: of "dirichlet".
        column: of the training data, for "column".
        logit_adjustment: clients' losses are adjusted by their own label shares.
        local_steps, own_directions, aggregate, trim, weighting: as in `RunSettings`.
        seed_pool: directions that the run has in all, in each block; 0: new ones every round.
        privacy: "central", "local" or None; clip, noise_multiplier, delta as in `PrivacySettings`.
        policy: JSON file of what every client takes part in, as in `blockzo.federated.client.policy.ClientPolicy`.
        secure_sum: the server sees sums only; as in `RunSettings`.
        drop: share of the answers that do not arrive in time; with secure_sum of the clients that drop out in one of its phases.
        liars: share of the clients that send random scalars.
    """

    engine: str = "zo"
    clients: int | None = None
    sample: int | None = 2
    partition: str = "dirichlet"
    alpha: float = 0.5
    column: str | None = None
    logit_adjustment: bool = False
    local_steps: int = 1
    own_directions: bool = False
    aggregate: str = "mean"
    trim: float = 0.25
    weighting: str = "examples"
    seed_pool: int = 0
    privacy: str | None = None
    clip: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    secure_sum: bool = False
    policy: str | None = None
    drop: float = 0.0
    liars: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("engine", ENGINES),
            ("partition", PARTITIONS),
            ("aggregate", AGGREGATES),
            ("weighting", WEIGHTINGS),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        if (self.partition == "column") != (self.column is not None):
            raise UserError("--partition column and --column NAME go together; give both or neither")
        if self.clients is None and self.partition != "column":
            object.__setattr__(self, "clients", CLIENTS)
        for name in ("clients", "sample", "local_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; expected 1 or more")
        if self.clients is not None and self.sample is not None and self.sample > self.clients:
            raise UserError(f"--sample is {self.sample} of {self.clients} clients; expected that many or fewer")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"--alpha is {self.alpha}; expected a positive number")
        if not 0 <= self.trim < 0.5:
            raise UserError(f"--trim is {self.trim}; expected a share of 0 or more and below 0.5")
        if self.seed_pool < 0:
            raise UserError(f"--seed-pool is {self.seed_pool}; expected 0 or more")
        if not 0 < self.delta < 0.5:
            raise UserError(f"--delta is {self.delta}; expected a number above 0 and below 0.5")
        told = (self.clip is not None, self.noise_multiplier is not None)
        if any(told) != (self.privacy is not None) or any(told) != all(told):
            raise UserError("--privacy, --clip and --noise-multiplier go together; give all three or none")
        if self.privacy is not None:
            PrivacySettings.from_dict(self.private(max(2, self.clients or 2)) or {})
            if self.weighting != "equal":
                raise UserError(
                    f"--weighting is {self.weighting}; a client's number of rows is private too: with --privacy give equal"
                )
        if self.secure_sum and (self.aggregate != "mean" or self.own_directions or self.privacy == "local"):
            raise UserError(
                "--secure-sum gives the mean over shared directions alone; leave out --aggregate, --own-directions and "
                "--privacy local (--privacy central, with noise that the clients add, goes with it)"
            )
        for name in ("drop", "liars"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; expected a share of 0 or more and below 1")
        plain = Federation() if self.engine == "fedavg" else self
        ignored = (
            "aggregate",
            "own_directions",
            "liars",
            "drop",
            "seed_pool",
            "privacy",
            "weighting",
            "secure_sum",
            "policy",
        )
        if any(getattr(self, name) != getattr(plain, name) for name in ignored):
            raise UserError(
                "--engine fedavg is the plain baseline, weighted by examples; leave out --aggregate, --own-directions, "
                "--liars, --drop, --seed-pool, --privacy, --weighting, --secure-sum and --policy"
            )

    def private(self, clients: int) -> dict[str, Any] | None:
        """What `RunSettings.privacy` is, for that many clients in all."""
        if self.privacy is None:
            return None
        return {
            "mode": self.privacy,
            "clip": self.clip,
            "noise_multiplier": self.noise_multiplier,
            "delta": self.delta,
            "clients": float(self.sample or clients),
            # every client's share of the noise is sized for the quorum
            **({"survivors": threshold_of(min(self.sample or clients, clients))} if self.secure_sum else {}),
        }

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Federation:
        try:
            return build(cls, values, "the simulation")
        except UserError:
            raise
        except Refusal as error:
            raise UserError(
                f"the journal's simulation does not fit this version of blockzo ({error}); use the version that wrote it"
            ) from None


def resumed(settings: Settings, federation: Federation, given: Mapping[str, Any]) -> tuple[Settings, Federation]:
    """The settings of a simulation that continues: the journal's, with what the user gave again where that may differ.

    Raises:
        UserError: names every setting that was given and differs.
    """
    before = {**settings.as_dict(), **federation.as_dict()}
    refuse(differences(before, given, FREE_ON_RESUME))
    # that code was trusted once says nothing of the code that is there now
    free = {"trust_remote_code": False, **{k: v for k, v in given.items() if k in finetune.FREE_ON_RESUME - {"steps"}}}
    return replace(settings, **free), replace(federation, policy=given.get("policy", federation.policy))
