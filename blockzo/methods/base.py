"""What a method is: which evaluations a step makes, and how their losses become one scalar for every (block, direction).

The gradient estimate of block b is sum_k s_bk z_bk; an update is minus the learning rate times it. One class says all of a
method: its name, its options, the evaluations and the rule. docs/extending/method.md walks through adding one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, ClassVar, TypeVar

from blockzo.journal.outside import MOST_BLOCKS, MOST_EVALUATIONS, build, shown
from blockzo.methods.tree import EvaluationTree

Scalars = list[dict[int, float]]
"""For every block, direction -> its scalar s."""


class Method(ABC):
    """A method: a frozen dataclass whose fields are its settings, marked `@registered`.

    Class attributes:
        option: its name on the command line (`--method`); "" where it is for Python alone.
        summary: one line for the help.
        options: its fields that the command line can set.
        blocks: number of blocks that it needs; None: any.
        linear: whether scalars are linear in the losses, so that losses of single examples can be clipped one by one.
    """

    option: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    options: ClassVar[tuple[str, ...]] = ()
    blocks: ClassVar[int | None] = None
    linear: ClassVar[bool] = True

    @abstractmethod
    def tree(self, blocks: int) -> EvaluationTree:
        """The evaluations of one step.

        Raises:
            ValueError: the method does not go with so many blocks, or a step would be too large.
        """

    @abstractmethod
    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        """From the losses of the tree's leaves in order; `eps` is the size of a move of each block."""

    def of_examples(self, losses: Sequence[Sequence[float]], eps: Sequence[float]) -> list[Scalars]:
        """Scalars of every example from its own losses, where each has directions of its own.

        Args:
            losses: examples x leaves.
        """
        return [self.scalars(own, eps) for own in losses]

    def evaluations(self, blocks: int) -> float:
        """About how many losses a step has, from above; without its tree, which would be as large."""
        return float(self.tree(blocks).leaves)

    def default_blocks(self) -> int:
        """Into how many blocks the command line cuts a model where nothing is said."""
        return self.blocks or 1

    @classmethod
    def examples(cls, blocks: int) -> list[Method]:
        """Small settings for so many blocks, on which every method is tested against materialised noise."""
        return [cls()] if cls.blocks in (None, blocks) else []

    def describe(self) -> dict[str, Any]:
        """Name and settings, as a journal's header and a federated run hold them."""
        return {"name": type(self).__name__, **vars(self)}


M = TypeVar("M", bound=type[Method])
METHODS: dict[str, type[Method]] = {}
"""Every method, by the name of its class, in the order in which docs and help list them."""


def registered(cls: M) -> M:
    """Class decorator: registers a method."""
    if not is_dataclass(cls) or cls.__name__ in METHODS:
        raise TypeError(
            f"{cls.__name__} is no dataclass, or the name is taken; expected a frozen dataclass with its own"
        )
    missing = set(cls.options) - {field.name for field in fields(cls)}
    if missing or any(cls.option and cls.option == known.option for known in METHODS.values()):
        raise TypeError(f"{cls.__name__}: options {sorted(missing)} are no fields, or option {cls.option!r} is taken")
    METHODS[cls.__name__] = cls
    return cls


def described(description: Mapping[str, Any]) -> Method:
    """The method that `Method.describe` names.

    Raises:
        ValueError: none of this blockzo, or settings that it does not take.
    """
    name, arguments = description.get("name"), {k: v for k, v in description.items() if k != "name"}
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(
            f"method is {shown(name)}; expected one of {', '.join(METHODS)} (a planner is no method of steps)"
        )
    found: Method = build(METHODS[name], arguments, f"method {name}")
    return found


def by_option() -> dict[str, type[Method]]:
    """Methods of the command line, by the value of `--method`."""
    return {cls.option: cls for cls in METHODS.values() if cls.option}


def named(name: str, **settings: Any) -> Method:
    """The method of a name, as on the command line ("one-sided") or in Python ("OneSided").

    Args:
        settings: fields of the method; its defaults where left out.

    Raises:
        ValueError: no method has that name, or it does not take these settings, or needs more.
    """
    known = {key.lower(): cls for cls in METHODS.values() for key in (cls.__name__, cls.option) if key}
    cls = known.get(name.lower().replace("_", "-"))
    if cls is None:
        raise ValueError(
            f'method is {name!r}; expected "auto", one of {", ".join(by_option())}, or an object such as MeZO()'
        )
    takes = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(settings) - set(takes)):
        raise ValueError(f"method {name!r} has no setting {', '.join(unknown)}; it takes {', '.join(takes) or 'none'}")
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    if lacking := sorted(set(needed) - set(settings)):
        raise ValueError(
            f"method {name!r} needs {', '.join(lacking)}; expected an object, such as blockzo.{cls.__name__}({lacking[0]}=...)"
        )
    return cls(**settings)


def contrasts(
    tree: EvaluationTree, losses: Sequence[float], eps: Sequence[float], base: float = 0.0, mirrored: bool = True
) -> Scalars:
    """The rule that all methods share: block b, direction k has the mean of sign * (loss - base) / eps_b over the leaves that it
    moves, divided by the number of directions of b. `mirrored` trees move every direction by both signs, and the base cancels.
    """
    terms: Scalars = [{} for _ in range(tree.blocks)]
    seen: list[dict[int, list[float]]] = [{} for _ in range(tree.blocks)]
    for moves, loss in zip(tree.leaf_moves(), losses, strict=True):
        for move in moves:
            values = seen[move.block].setdefault(move.direction, [])
            values += [move.sign * loss] if mirrored else [move.sign * loss, -move.sign * base]
    for block, found in enumerate(seen):
        for direction, values in sorted(found.items()):
            leaves = len(values) if mirrored else len(values) // 2
            terms[block][direction] = math.fsum(values) / (leaves * len(found) * eps[block])
    return terms


def positive(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a positive integer")


def counts(what: str, values: Sequence[int]) -> tuple[int, ...]:
    values = tuple(values)
    if not values or not any(values) or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
        raise ValueError(
            f"{what} is {values}; expected a number of directions for each block, 0 or more and not all of them 0"
        )
    return values


def affordable(what: str, nodes: Sequence[int]) -> None:
    """Raises ValueError before a tree is grown that no step could evaluate.

    Args:
        nodes: of every block, as they lie in the tree; the largest number is about that of the leaves.
    """
    if len(nodes) > MOST_BLOCKS or max(nodes) > MOST_EVALUATIONS or sum(nodes) > 2 * MOST_EVALUATIONS:
        raise ValueError(
            f"{what} of {len(nodes)} blocks are too many for one step; expected at most {MOST_EVALUATIONS} evaluations of at "
            f"most {MOST_BLOCKS} blocks: take fewer directions"
        )
