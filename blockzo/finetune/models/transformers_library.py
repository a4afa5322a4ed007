"""transformers, quiet, and with whatever it makes of a user's files told as one message."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from blockzo.finetune.errors import UserError
from blockzo.finetune.models.built_in import BUILT_IN
from blockzo.finetune.models.dtypes import DTYPES

T = TypeVar("T")
TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}


def quiet_transformers() -> Any:
    """The module, without its own progress bars and notes."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def attempt(source: str, action: Callable[[], T]) -> T:
    """`action()`; whatever a library makes of a user's files becomes one message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return action()
    except UserError:
        raise
    except Exception as error:
        kind = (
            "a folder"
            if Path(source).exists()
            else "no folder here and not a built-in model, so it was sought on the hub"
        )
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])[:400] or type(error).__name__
        if "trust_remote_code" in str(error):
            raise UserError(
                f"the model {source!r} brings Python code of its own, which would run with your rights: read it, then add "
                "--trust-remote-code to run it"
            ) from error
        raise UserError(
            f"the model {source!r} cannot be loaded ({kind}): {reason}\n"
            f"Expected a folder with config.json, tokenizer files and weights, a .gguf file, one of {', '.join(BUILT_IN)}, or "
            "a hub name where there is a network"
        ) from error
