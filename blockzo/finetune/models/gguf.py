"""Models in GGUF files, their quantised weights expanded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blockzo.finetune.errors import UserError
from blockzo.finetune.models.checkpoint import fitted
from blockzo.finetune.models.gguf_header import check_gguf
from blockzo.finetune.models.transformers_library import TORCH_DTYPES, attempt, quiet_transformers


def gguf_file(path: Path) -> Path | None:
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"{path} is a file; expected a model folder or a .gguf file")
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise UserError(f"{path} holds {len(found)} .gguf files ({', '.join(f.name for f in found)}); name one of them")
    return found[0] if found else None


def read_gguf(path: Path, dtype: str, seed: int = 0) -> tuple[Any, Any, list[str]]:
    """Model and tokenizer of a GGUF file, its quantised weights expanded to `dtype`, and what there is to say of them."""
    transformers = quiet_transformers()
    folder, name = str(path.parent), path.name
    try:
        check_gguf(path)
    except ValueError as error:
        raise UserError(f"{path} is not a whole GGUF file: {error}; fetch or copy it again") from None
    tokenizer = attempt(str(path), lambda: transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name))
    options = {"gguf_file": name, "dtype": TORCH_DTYPES[dtype], "trust_remote_code": False}
    try:
        model, notes = attempt(
            str(path), lambda: fitted(folder, transformers.AutoModelForCausalLM, options, {}, None, seed)
        )
    except UserError as error:
        if name in str(error):
            raise
        # it speaks of the folder, which may hold others
        raise UserError(f"{path}: {error}") from error
    # it is no longer quantised; with these left, save_pretrained refuses
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    return model, tokenizer, notes
