"""What one way to combine the scalars of several clients says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from blockzo.journal.outside import Refusal, build

A = TypeVar("A", bound="Aggregate")
Vectors = Sequence[Sequence[float]]
"""The scalars of every client: clients x scalars of a round (local steps, then blocks, then directions)."""


@dataclass(frozen=True)
class Aggregate(ABC):
    """One way to combine scalars. Fields of a subclass are its options; its `__post_init__` checks them (ValueError). The first
    paragraph of its docstring is its line in the docs.

    Attributes:
        name: in `RunSettings.aggregate` and `--aggregate`; it travels, and never changes.
        summary: a line for `--help`.
        weighted: do numbers of examples count (`RunSettings.weighting`)? A claimed number must not outvote honest clients.
        own_directions: is one entry that comes from one client, times its share, right for it?
        secure_sum: can it be had from the sum of all clients' scalars?
        central_noise: does one client move it by `clip` over the number of clients at most?
        local_steps: does it go with several local steps in a round?
        signs: scalars are +1 or -1 in replies and in the record, and travel as one bit each.
        fields_of_run: options that travel in a field of `RunSettings` of their own, option -> field; others travel in
            `aggregate_options`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    weighted: ClassVar[bool] = False
    own_directions: ClassVar[bool] = False
    secure_sum: ClassVar[bool] = False
    central_noise: ClassVar[bool] = False
    local_steps: ClassVar[bool] = True
    signs: ClassVar[bool] = False
    fields_of_run: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def combine(self, vectors: Vectors, counts: Sequence[int]) -> list[float]:
        """One scalar for each entry. The same bits in whatever order the clients come.

        Args:
            vectors: of one client or more, all equally long, finite.
            counts: what each client weighs: examples, or 1.
        """

    @classmethod
    def of(cls: type[A], options: Mapping[str, Any]) -> A:
        """With these options, as they travel; the others have their defaults.

        Raises:
            ValueError: an option is unknown, of another type or out of range.
        """
        if unknown := sorted(set(options) - {field.name for field in fields(cls)}):
            known = ", ".join(field.name for field in fields(cls)) or "none"
            raise Refusal(f"aggregate {cls.name} has no option {unknown[0]!r}; expected some of: {known}")
        return build(cls, options, f"aggregate {cls.name}")

    def options(self) -> dict[str, Any]:
        """Those that travel in `RunSettings.aggregate_options`."""
        return {name: value for name, value in asdict(self).items() if name not in self.fields_of_run}
