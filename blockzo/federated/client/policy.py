"""What a client takes part in at least and at most: said by its owner, checked before a scalar leaves.

A server says how a run goes, and could say that it goes without privacy. So a client compares what it is told with what its owner
wants, whenever it takes a run's settings: when it is welcomed, and when it comes back from its journal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from blockzo.federated.privacy.settings import MODES, UNITS, PrivacySettings
from blockzo.federated.protocol.settings import RunSettings
from blockzo.journal.outside import printable

PRIVACY = ("none", "any", *MODES)


class PolicyError(ValueError):
    """A run that the owner of this client does not want to take part in."""


@dataclass(frozen=True)
class ClientPolicy:
    """Bounds of one client; the defaults ask for no privacy and bound the work.

    Attributes:
        privacy: "none": not asked for; "any", "central" or "local": only runs with it, or with that mode.
        unit: of the privacy, "client" or "example"; "": either.
        least_noise: noise multiplier of the privacy at least.
        most_clip: clip at most, in units of a scalar.
        most_epsilon: of the whole run at most; infinite: not computed. Needs dp-accounting.
        most_delta: of the privacy at most.
        secure_sum: only runs with signed secure sums.
        methods: names of methods that may be run; empty: all.
        held_out: whether scores on held-out data are told when a server asks.
        most_directions: of a round, all blocks and local steps together, at most.
        most_local_steps, most_rounds, most_pool: at most.
        most_eps, most_lr: of any block at most.
    """

    privacy: str = "none"
    unit: str = ""
    least_noise: float = 0.0
    most_clip: float = math.inf
    most_epsilon: float = math.inf
    most_delta: float = 1.0
    secure_sum: bool = False
    methods: tuple[str, ...] = ()
    held_out: bool = True
    most_directions: int = 1 << 14
    most_local_steps: int = 1 << 10
    most_rounds: int = 10_000_000
    most_pool: int = 1 << 20
    most_eps: float = 1.0
    most_lr: float = 1e3

    def __post_init__(self) -> None:
        names = self.methods
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"methods of a client's policy is {names!r}; expected a list of names")
        object.__setattr__(self, "methods", tuple(names))
        if self.privacy not in PRIVACY or self.unit not in ("", *UNITS):
            raise ValueError(
                f"privacy is {self.privacy!r}, unit {self.unit!r}; expected one of {', '.join(PRIVACY)} and one of "
                f"{', '.join(UNITS)} or nothing"
            )
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            fits = number and not math.isnan(value) and value >= 0 if kind in (int, float) else isinstance(value, kind)
            if not fits:
                raise ValueError(
                    f"{field.name} of a client's policy is {value!r}; expected {kind.__name__}, not negative"
                )
        if self.privacy == "none" and (
            self.least_noise or self.unit or math.isfinite(min(self.most_clip, self.most_epsilon))
        ):
            raise ValueError('a policy bounds the privacy of runs and asks for none; expected privacy="any" or a mode')

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> ClientPolicy:
        unknown = set(given) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(
                f"a client's policy has no {sorted(unknown)}; expected some of {[f.name for f in fields(cls)]}"
            )
        return cls(**given)

    @classmethod
    def load(cls, path: Path) -> ClientPolicy:
        """From a JSON file of the owner."""
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"the policy {path} cannot be read: {error}") from None
        if not isinstance(given, dict):
            raise ValueError(f"the policy {path} is no JSON object; expected one with fields of ClientPolicy")
        return cls.from_dict(given)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check(self, settings: RunSettings) -> None:
        """Raises PolicyError where the run asks for more, or protects less, than the owner wants."""
        name = str(settings.method.get("name"))
        if self.methods and name not in self.methods:
            raise PolicyError(
                f"the run's method is {printable(name)}; this client takes part in {', '.join(self.methods)}"
            )
        if self.secure_sum and not settings.signed_sum:
            raise PolicyError("the run has no signed secure sums, which this client asks for")
        for what, found, most in (
            ("directions of a round", settings.scalars, self.most_directions),
            ("local steps", settings.local_steps, self.most_local_steps),
            ("rounds", settings.rounds, self.most_rounds),
            ("directions of the pool", settings.pool, self.most_pool),
            ("eps", max(settings.eps), self.most_eps),
            ("lr", max(settings.lr), self.most_lr),
        ):
            if found > most:
                raise PolicyError(f"{what}: {found:g} in the run, at most {most:g} by this client's policy")
        if self.privacy != "none":
            self._check_privacy(settings.private, settings.rounds)

    def _check_privacy(self, private: PrivacySettings | None, rounds: int) -> None:
        if private is None or self.privacy not in ("any", private.mode):
            found = "none" if private is None else private.mode
            raise PolicyError(f"the run's privacy is {found!r}; this client asks for {self.privacy!r}")
        if self.unit and private.unit != self.unit:
            raise PolicyError(f"the run protects a {private.unit}; this client asks for unit {self.unit!r}")
        if private.noise_multiplier < self.least_noise:
            raise PolicyError(
                f"the run's noise is {private.noise_multiplier:g} clips; this client asks for {self.least_noise:g}"
            )
        if private.clip > self.most_clip or private.delta > self.most_delta:
            raise PolicyError(
                f"the run has clip {private.clip:g} and delta {private.delta:g}; this client takes {self.most_clip:g} and "
                f"{self.most_delta:g} at most"
            )
        if math.isfinite(self.most_epsilon):
            spent = private.epsilon(rounds)
            if spent > self.most_epsilon:
                raise PolicyError(
                    f"the run's epsilon is {spent:.3g} at its end; this client takes {self.most_epsilon:g} at most"
                )
