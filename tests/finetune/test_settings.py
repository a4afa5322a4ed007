"""Settings are checked before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from blockzo import FZOO, SPSA, SPZO, Auto, MeZO, OneSided, Tree
from blockzo.finetune.errors import UserError
from blockzo.finetune.resuming import resumed
from blockzo.finetune.settings import Settings


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "adam"}, "--method is 'adam'; expected one of .*mezo"),
        ({"variant": "x"}, "--variant"),
        ({"schedule": "step"}, "--schedule"),
        ({"distribution": "uniform"}, "--distribution"),
        ({"dtype": "int8"}, "--dtype is 'int8'; expected one of auto, float32"),
        ({"overflow": "ignore"}, "--overflow"),
        ({"head": "cls"}, "--head"),
        ({"steps": 0}, "--steps is 0; expected 1 or more"),
        ({"batch": 0}, "--batch"),
        ({"max_length": 2}, "--max-length is 2; expected 3"),
        ({"warmup": -1}, "--warmup"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**64}, "--seed"),
        ({"weight_decay": float("nan")}, "--weight-decay"),
        ({"lr": "fast"}, "--lr is 'fast'; expected a number"),
        ({"lr": "nan"}, "finite"),
        ({"lr": "-1"}, "--lr is -1"),
        ({"eps": "0"}, "--eps is 0; expected positive"),
        ({"lr": "1e-6,1e-5,1e-4"}, "--lr has 3 numbers for 2 blocks"),
        ({"method": "mezo", "eps": "1e-3,1e-3"}, "--eps has 2 numbers for 1 blocks"),
        ({"split": "a"}, "--split has 'a'"),
        ({"split": "0.5", "blocks": 2}, "--blocks and --split"),
        ({"shots": 4, "train_rows": 8}, "--shots and --train-rows"),
        ({"method": "spzo", "split": "2,4"}, "SPZO splits a model in two"),
        ({"method": "tree"}, "needs --levels"),
        ({"method": "tree", "levels": "1,2", "split": "1,2"}, "2 levels of directions for 3 blocks"),
        ({"method": "tree", "levels": "1,0.5"}, "--levels is 1,0.5"),
        ({"method": "mezo", "directions": 4}, "which takes no options; it is for .*spsa"),
        ({"method": "auto", "directions": 4}, "--directions does not go with --method auto, which takes no options"),
        ({"method": "auto", "in_place": True}, "leave --in-place out"),
        ({"per_example": True, "in_place": True}, "--per-example does not go with --in-place"),
        ({"moved": "float32", "in_place": True}, "--moved float32 does not go with --in-place"),
        ({"method": "fzoo", "directions": 1}, "FZOO needs two or more"),
        (
            {"method": "mezo", "one_sided": True},
            "which takes no options; it is for spzo, tree",
        ),
        ({"variant": "crossed", "one_sided": True}, "use coupled or decoupled.*--variant"),
    ],
)
def test_what_cannot_be_is_refused_with_the_options_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Settings("model", **options)


@pytest.mark.parametrize(
    ("options", "method", "boundaries"),
    [
        ({}, SPZO(1, 4), [0.5]),
        ({"method": "spzo", "outer": 2, "inner": 3, "variant": "crossed", "split": "3"}, SPZO(2, 3, "crossed"), [3]),
        ({"inner": 2, "variant": "decoupled", "one_sided": True}, SPZO(1, 2, "decoupled", True), [0.5]),
        ({"method": "mezo"}, MeZO(), []),
        ({"method": "mezo", "blocks": 4}, MeZO(), [0.25, 0.5, 0.75]),
        ({"method": "spsa", "directions": 3, "split": "auto"}, SPSA(3), "auto"),
        ({"method": "one-sided", "directions": 2}, OneSided(2), []),
        ({"method": "fzoo"}, FZOO(8), []),
        ({"method": "auto"}, Auto(), "fine"),
        ({"method": "auto", "split": "0.5,head"}, Auto(), [0.5, "head"]),
        ({"method": "tree", "levels": "1,2,4"}, Tree((1, 2, 4)), [1 / 3, 2 / 3]),
        ({"method": "tree", "levels": "1,2", "one_sided": True}, Tree((1, 2), True), [0.5]),
        ({"method": "tree", "levels": "2,4", "split": "0.75"}, Tree((2, 4)), [0.75]),
    ],
)
def test_methods_and_cuts(options: dict[str, Any], method: object, boundaries: object) -> None:
    settings = Settings("model", **options)
    assert settings.estimator() == method
    assert settings.boundaries() == boundaries
    assert Settings.from_dict(settings.as_dict()) == settings


def test_resuming_allows_what_does_not_change_a_step() -> None:
    old = Settings("model", lr="1e-5", steps=10, eval_every=5)
    same = resumed(old, {"lr": "0.00001", "steps": 20, "threads": 1, "model": "elsewhere"})
    assert (same.steps, same.threads, same.model, same.eval_every) == (20, 1, "elsewhere", 5)
    with pytest.raises(UserError, match=r"--lr was 1e-5, now 2e-5; --batch was 16, now 8"):
        resumed(old, {"lr": "2e-5", "batch": 8})
    with pytest.raises(UserError, match="--steps was 10, now 20, which would change the linear schedule"):
        resumed(Settings("model", steps=10, schedule="linear"), {"steps": 20})


def test_settings_of_another_version_are_refused() -> None:
    with pytest.raises(UserError, match="unknown 'speed'"):
        Settings.from_dict({"model": "m", "speed": 9})
