"""What a simulation is told beside the settings of a fine-tune: clients, their data, and how rounds combine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from blockzo.federated.client.partition import PARTITIONS
from blockzo.federated.privacy.settings import MODES, PrivacySettings
from blockzo.federated.protocol.aggregates import AGGREGATES, Aggregate, aggregate_of, names_with
from blockzo.federated.protocol.settings import WEIGHTINGS
from blockzo.finetune import resuming
from blockzo.finetune.errors import UserError
from blockzo.finetune.option import SIMULATE, check, free_on_resume, named
from blockzo.finetune.option import option as finetune_option
from blockzo.finetune.resuming import differences, refuse
from blockzo.finetune.settings import Settings
from blockzo.journal.outside import Refusal, build

CLIENTS, PRIVACY = "Clients and rounds", "Privacy"
ENGINES = {"zo": "seeds and scalars", "fedavg": "first-order baseline"}
USUAL_CLIENTS = 8
SPLIT_BY_CHANCE = ("iid", "dirichlet", "label")
"""Partitions that make as many clients as they are told."""
NOT_OF_FEDAVG = (
    *("aggregate", "aggregate_options", "own_directions", "liars", "drop", "seed_pool"),
    *("privacy", "weighting", "secure_sum", "policy"),
)


def option(meaning: str, group: str, default: Any, **more: Any) -> Any:
    return finetune_option(meaning, group, default, commands=(SIMULATE,), **more)


@dataclass(frozen=True)
class Federation:
    """The federated part of a simulation. Every field is an option of the command line; docs/federated.md has them as a table."""

    engine: str = option("{choices}.", CLIENTS, "zo", choices=ENGINES)
    clients: int | None = option(
        "Virtual clients; 8 by default, with --partition column or FILE.py:NAME as many as there are.",
        CLIENTS,
        None,
        least=1,
    )
    sample: int | None = option("Clients asked in a round; 0 asks all.", CLIENTS, 2, least=1)
    partition: str = option(
        f"Rows of the clients: {', '.join(PARTITIONS)}, or a partitioner of one's own, FILE.py:NAME (its code runs).",
        CLIENTS,
        "dirichlet",
    )
    alpha: float = option("dirichlet: small for few labels a client.", CLIENTS, 0.5)
    column: str | None = option("column: of the training file, one client a value.", CLIENTS, None)
    logit_adjustment: bool = option(
        "A client's loss allows for its own label shares, so that skewed clients do not push the bias.", CLIENTS, False
    )
    local_steps: int = option(
        "Estimates of a client in a round; it moves on its own between them.", CLIENTS, 1, least=1
    )
    own_directions: bool = option("Every client has directions of its own.", CLIENTS, False)
    aggregate: str = option(
        "{choices}.",
        CLIENTS,
        "mean",
        choices={name: kind.summary for name, kind in AGGREGATES.items()},
    )
    aggregate_options: str | None = option("Of the aggregate: name=value, name=value.", CLIENTS, None)
    trim: float = option("trimmed-mean: share left out at either end.", CLIENTS, 0.25)
    weighting: str = option(
        f"{names_with('weighted')}: how clients are weighed, {{choices}}.", CLIENTS, "examples", choices=WEIGHTINGS
    )
    seed_pool: int = option(
        "Directions that the run has in all, in each block; 0: new ones every round.",
        CLIENTS,
        0,
        least=0,
        # the protocol's word; of the command line's --pool batches come
        stands_for=("pool",),
    )
    privacy: str | None = option(
        "{choices}: who adds the noise of differential privacy.",
        PRIVACY,
        None,
        choices=MODES,
        stands_for=("privacy mode",),
    )
    clip: float | None = option(
        "L2 norm that a client's scalars are cut to.", PRIVACY, None, stands_for=("privacy clip",)
    )
    noise_multiplier: float | None = option(
        "Standard deviation of the noise over --clip.", PRIVACY, None, stands_for=("privacy noise_multiplier",)
    )
    delta: float = option("Of (epsilon, delta).", PRIVACY, 1e-5, stands_for=("privacy delta",))
    secure_sum: bool = option("The server sees sums of the clients' scalars only.", PRIVACY, False)
    policy: str | None = option(
        "JSON file of what every client takes part in; others are refused.", PRIVACY, None, free=True
    )
    drop: float = option(
        "Share of answers that get lost; with --secure-sum of clients that drop out in one of its phases.", CLIENTS, 0.0
    )
    liars: float = option("Share of clients that send random scalars.", CLIENTS, 0.0)

    def __post_init__(self) -> None:
        check(self)
        if self.partition not in PARTITIONS and not self.own_partition:
            raise UserError(
                f"--partition is {self.partition!r}; expected one of {', '.join(PARTITIONS)}, or FILE.py:NAME"
            )
        if (self.partition == "column") != (self.column is not None):
            raise UserError("--partition column and --column NAME go together; give both or neither")
        if self.clients is None and self.partition in SPLIT_BY_CHANCE:
            object.__setattr__(self, "clients", USUAL_CLIENTS)
        if self.clients is not None and self.sample is not None and self.sample > self.clients:
            raise UserError(f"--sample is {self.sample} of {self.clients} clients; expected that many or fewer")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"--alpha is {self.alpha}; expected a positive number")
        if not 0 <= self.trim < 0.5:
            raise UserError(f"--trim is {self.trim}; expected a share of 0 or more and below 0.5")
        combining = self.combining
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
        if self.secure_sum and (not combining.secure_sum or self.own_directions or self.privacy == "local"):
            raise UserError(
                f"--secure-sum gives the {names_with('secure_sum')} over shared directions alone; leave out --aggregate, "
                "--own-directions and --privacy local (--privacy central, with noise that the clients add, goes with it)"
            )
        for name in ("drop", "liars"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; expected a share of 0 or more and below 1")
        plain = Federation() if self.engine == "fedavg" else self
        if any(getattr(self, name) != getattr(plain, name) for name in NOT_OF_FEDAVG):
            raise UserError(
                "--engine fedavg is the plain baseline, weighted by examples; leave out "
                f"{', '.join(map(named, NOT_OF_FEDAVG[:-1]))} and {named(NOT_OF_FEDAVG[-1])}"
            )

    @property
    def own_partition(self) -> bool:
        """Is it code of one's own?"""
        return ".py:" in self.partition

    @property
    def combining(self) -> Aggregate:
        """`aggregate` as an object.

        Raises:
            UserError: `aggregate_options` are not its own.
        """
        options: dict[str, Any] = {}
        for part in filter(None, (self.aggregate_options or "").split(",")):
            name, equals, value = (word.strip() for word in part.partition("="))
            if not name or not equals:
                raise UserError(f"--aggregate-options has {part!r}; expected name=value")
            try:
                options[name] = json.loads(value)
            except json.JSONDecodeError:
                options[name] = value
        try:
            return aggregate_of(self.aggregate, options, vars(self))
        except ValueError as error:
            raise UserError(f"--aggregate-options: {error}") from None

    def private(self, clients: int) -> dict[str, Any] | None:
        """What `RunSettings.privacy` is, for that many clients in all."""
        if self.privacy is None:
            return None
        # numpy comes with it, which the command line's help can do without
        from blockzo.federated.secagg.sum_client import threshold_of

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


FREE_OF_SETTINGS = resuming.FREE_ON_RESUME - {"steps"}
FREE_OF_FEDERATION = free_on_resume(Federation)
FREE_ON_RESUME = FREE_OF_SETTINGS | FREE_OF_FEDERATION
"""What may differ when a simulation continues: as for a fine-tune, but not its rounds; and what clients ask for."""


def resumed(settings: Settings, federation: Federation, given: Mapping[str, Any]) -> tuple[Settings, Federation]:
    """The settings of a simulation that continues: the journal's, with what the user gave again where that may differ.

    Raises:
        UserError: names every setting that was given and differs.
    """
    before = {**settings.as_dict(), **federation.as_dict()}
    refuse(differences(before, given, FREE_ON_RESUME))
    if federation.own_partition and "partition" not in given:
        raise UserError(
            f"the simulation has a partitioner of its own, {federation.partition}, whose code would run; say so again with "
            f"--partition {federation.partition}"
        )
    # that code was trusted once says nothing of the code that is there now
    free = {"trust_remote_code": False, **{k: v for k, v in given.items() if k in FREE_OF_SETTINGS}}
    return replace(settings, **free), replace(federation, **{k: v for k, v in given.items() if k in FREE_OF_FEDERATION})
