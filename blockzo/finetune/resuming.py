"""What may differ when a run continues, and the error that names what may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockzo.finetune.errors import UserError
from blockzo.finetune.models.dtypes import AUTO
from blockzo.finetune.number_lists import numbers
from blockzo.finetune.option import free_on_resume, named
from blockzo.finetune.settings import UNMEASURED, Settings

FREE_ON_RESUME = free_on_resume(Settings)
"""Settings that may differ when a run continues: model and data are compared by digest, the others do not change a step."""


def resumed(old: Settings, given: Mapping[str, Any]) -> Settings:
    """The settings of a run that continues: the journal's, with what the user gave again where that may differ.

    Raises:
        UserError: names every setting that was given and differs.
    """
    before = old.as_dict()
    wrong = differences(before, given, FREE_ON_RESUME)
    steps = given.get("steps", old.steps)
    if steps != old.steps and old.schedule != "constant":
        wrong.append(f"--steps was {old.steps}, now {steps}, which would change the {old.schedule} schedule")
    refuse(wrong)
    if old.reward is not None and "reward" not in given:
        raise UserError(
            f"the run has a reward of its own, {old.reward}, whose code would run; say so again with --reward {old.reward}"
        )
    # that code was trusted once says nothing of the code that is there now
    before["trust_remote_code"] = False
    return Settings(**{**before, **{k: v for k, v in given.items() if k in FREE_ON_RESUME}})


def differences(before: Mapping[str, Any], given: Mapping[str, Any], free: frozenset[str]) -> list[str]:
    """Of settings that were given again: those that are not `free` to differ from what they were, each as a phrase."""
    return [
        f"{named(name)} was {before[name]}, now {value}"
        for name, value in given.items()
        if name in before and name not in free and not _same(name, value, before[name])
    ]


def refuse(wrong: list[str]) -> None:
    """Raises UserError where a run that continues would have other settings."""
    if wrong:
        raise UserError(
            f"the run cannot continue with other settings: {'; '.join(wrong)}. Leave these options out, or start another run "
            "in another --output"
        )


def _same(name: str, one: Any, other: Any) -> bool:
    if name in ("lr", "eps") and one is not None:
        # rounds that were told no rate
        return numbers(named(name), one) == numbers(named(name), UNMEASURED if other is None else other)
    # the journal has what `auto` stood for
    return bool(one == other) or (name == "dtype" and one == AUTO)
