"""What a Trainer's journal says of its model, so that `blockzo replay` can load the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

TRAINER, MODEL = "trainer", "model"
"""Places in the journal's metadata: class of the Trainer; class and dtype of the base model."""


def described(model: nn.Module) -> dict[str, Any]:
    """Class and dtype of a model, or of what an adapter of PEFT is on."""
    find: Any = getattr(model, "get_base_model", None)
    base = model if find is None else find()
    # an adapter may have another dtype than what it is on
    own = (p for p in base.parameters() if p.is_floating_point() and (find is None or not p.requires_grad))
    dtype = next((str(parameter.dtype).removeprefix("torch.") for parameter in own), None)
    return {MODEL: {"class": type(base).__name__, "dtype": dtype}}
