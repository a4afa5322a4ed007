"""The command `blockzo evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Argument, Option

from blockzo.cli import shared
from blockzo.cli.command import Change, options_from
from blockzo.cli.config_file import PASSED_OVER
from blockzo.cli.printing import scores, show
from blockzo.finetune.option import EVALUATE, MODEL, options_of
from blockzo.finetune.settings import Settings

CHANGED = {
    "train": Change(help="Data to hold rows out of, where there is no validation file."),
    "batch": Change(help="Rows at a time.", default=32),
}


@options_from(Settings, command=EVALUATE, changed=CHANGED)
def evaluate(
    model: Annotated[str, Argument(help="Folder (of an adapter of PEFT, too), GGUF file, hub name or built-in model.")],
    base: Annotated[
        str | None,
        Option("--base", help="Model of an adapter, where not the one that its folder names.", rich_help_panel=MODEL),
    ] = None,
    config: shared.Config = None,
    fallback_model: shared.Fallback = None,
    as_json: shared.Json = False,
    **chosen: Any,
) -> None:
    """Score a model on the held-out rows of a task."""
    from blockzo import finetune as tuning
    from blockzo.finetune.progress import reporter

    result = tuning.evaluate(Settings(model, **chosen), reporter(), fallback_model, base)
    show(result, as_json, scores(result["scores"]))


# the file of a run says how its model is scored, too
setattr(
    evaluate, PASSED_OVER, frozenset(name.replace("_", "-") for name in (*options_of(Settings), "output", "resume"))
)
