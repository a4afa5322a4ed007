"""The command `blockzo simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from blockzo.cli import shared
from blockzo.cli.command import Change, options_from, those_of, typed
from blockzo.cli.endings import stoppable
from blockzo.cli.printing import scores, show
from blockzo.finetune.option import SIMULATE
from blockzo.finetune.settings import Settings
from blockzo.simulate.settings import Federation

ROUNDS = Change(name="rounds", help="Rounds.")
"""The steps of a simulation."""


@options_from(Settings, Federation, command=SIMULATE, changed={"steps": ROUNDS})
def simulate(
    context: typer.Context,
    config: shared.Config = None,
    output: shared.Output = None,
    resume: shared.Resume = False,
    fallback_model: shared.Fallback = None,
    as_json: shared.Json = False,
    **chosen: Any,
) -> None:
    """Federated rounds of virtual clients in one process; writes accuracy against rounds, FLOPs and bytes."""
    from blockzo import simulate as simulation
    from blockzo.finetune.progress import reporter

    folder = output or Path("runs") / f"simulate-{chosen['task']}-{chosen['method']}-{chosen['seed']}"

    def act() -> dict[str, Any]:
        if resume:
            return simulation.resume(folder, reporter(), fallback_model, _sample_of_all(typed(context)))
        given = _sample_of_all(chosen)
        settings = Settings(**those_of(Settings, given))
        federation = Federation(**those_of(Federation, given))
        return simulation.simulate(settings, federation, folder, reporter(), fallback_model)

    result = stoppable(SIMULATE, folder, as_json, act)
    show(result, as_json, told(result))


def _sample_of_all(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "sample": None} if given.get("sample") == 0 else given


def told(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    rows = result["rows_of_clients"]
    lines = [
        f"before  {scores(result['before'])}",
        f"after   {scores(result['after'])}",
        f"{result['rounds']} rounds of {result['method']}, {result['clients']} clients of {rows['least']} to {rows['most']} rows",
        *_privacy(result["epsilon"], result["federation"]["delta"]),
        f"{result['flops']:.3g} FLOPs, {result['bytes_up_of_an_answer']:.0f} bytes up and "
        f"{result['bytes_down_of_an_answer']:.0f} down an answer, {result['seconds']:.0f} s",
        *(f"{name:<7} {path}" for name, path in result["files"].items()),
    ]
    return "\n".join(lines)


def _privacy(epsilon: float | None, delta: float) -> list[str]:
    return [] if epsilon is None else [f"epsilon {epsilon:.3g} at delta {delta:g}"]
