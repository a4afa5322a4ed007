"""Weights that steps alone write: what a callback does to them stands in no record, so a replay would lead elsewhere."""

from __future__ import annotations

from torch import nn

from blockzo.journal.file import JournalError


class Untouched:
    """Versions of a model's parameters after a step; torch counts each write but those through `.data`."""

    def __init__(self) -> None:
        self._versions: dict[str, int] = {}

    def note(self, model: nn.Module) -> None:
        """As they are now."""
        self._versions = _versions(model)

    def check(self, model: nn.Module) -> None:
        """Raises JournalError where a parameter was written since."""
        now = _versions(model)
        written = [name for name, version in self._versions.items() if now.get(name, version) != version]
        if written:
            raise JournalError(
                f"{', '.join(written[:3])}{', ...' if len(written) > 3 else ''} was written since the last step, by a callback "
                "or the like, which no record tells: the journal would lead to other weights. Leave the weights to the steps "
                "(change a copy), or pass journal=None"
            )


def _versions(model: nn.Module) -> dict[str, int]:
    return {name: parameter._version for name, parameter in model.named_parameters() if not parameter.is_inference()}
