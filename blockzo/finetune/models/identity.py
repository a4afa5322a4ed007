"""What a run is made of beside its weights: the settings of the architecture, and the files of the tokenizer and of model code.

They are part of a run's identity: the same weights under another activation, another norm epsilon or another vocabulary are
another model. The journal's header holds them, and whatever continues or rebuilds the run compares them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blockzo.finetune.models.loading import Loaded
from blockzo.finetune.models.packages import converted_from, sha256
from blockzo.journal.outside import Word, shown

_ORIGIN = {
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
}
"""Where a configuration came from, and what software or run read it: the dtype is a setting of the run."""
_RETURNED = {
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "torchscript",
    "use_cache",
}
"""What a forward returns beside the loss, and keeps for a next one."""
_NEUTRAL = _ORIGIN | _RETURNED | {"bos_token_id", "eos_token_id", "gradient_checkpointing", "chunk_size_feed_forward"}
_LONG = 200
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)


@dataclass(frozen=True)
class Identity:
    """`architecture`: settings by their dotted names; `files`: SHA-256 by name."""

    architecture: dict[Word, Any]
    files: dict[Word, Word]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def changes(self, now: Identity, same_version: bool = True) -> list[str]:
        """What differs in `now`, in words.

        Args:
            same_version: of transformers; with another one, settings that only one of the two knows are passed over.
        """
        found = []
        for name in sorted(self.architecture.keys() | now.architecture.keys()):
            both = name in self.architecture and name in now.architecture
            old, new = self.architecture.get(name), now.architecture.get(name)
            if old != new and (both or same_version):
                found.append(f"the setting {shown(name)[1:-1]} of config.json was {_told(old)}, now it is {_told(new)}")
        for name in sorted(self.files.keys() | now.files.keys()):
            before, after = self.files.get(name), now.files.get(name)
            if before != after:
                how = "is new" if before is None else "is gone" if after is None else "has other content"
                found.append(f"the file {shown(name)[1:-1]} {how}")
        return found


def _told(value: object) -> str:
    return "not there" if value is None else shown(value)


def identity_of(loaded: Loaded) -> Identity:
    return Identity(_architecture(loaded.model), _files(loaded))


def _architecture(model: Any) -> dict[str, Any]:
    """The settings that the loaded model has, defaults included, without those that no loss can depend on.

    Left out are where the configuration came from, what a forward returns, and (by transformers' own list) how text is generated.
    """
    from transformers import GenerationConfig

    config = model.config
    # the names that a configuration declares itself are architecture, whatever generation calls by the same name
    declared = {name for kind in type(config).__mro__[:-1] for name in kind.__dict__.get("__annotations__", {})}
    generation = set(GenerationConfig().to_dict()) - declared - {"pad_token_id", "decoder_start_token_id"}
    found: dict[str, Any] = {"class": type(getattr(model, "encoder", model)).__name__}

    def take(prefix: str, values: Mapping[Any, Any]) -> None:
        for name, value in values.items():
            if name in _NEUTRAL or (not prefix and name in generation):
                continue
            if isinstance(value, Mapping) and value and name not in ("id2label", "label2id"):
                take(f"{prefix}{name}.", value)
                continue
            text = json.dumps(value, sort_keys=True, default=str)
            long = len(text) > _LONG
            found[f"{prefix}{name}"[:256]] = (
                "sha256 " + hashlib.sha256(text.encode()).hexdigest() if long else json.loads(text)
            )

    take("", config.to_dict())
    return found


def _files(loaded: Loaded) -> dict[str, str]:
    source = Path(loaded.source)
    if source.is_file():
        # one file with weights, settings and tokenizer
        return {"(the .gguf file)": sha256(source)}
    origin = converted_from(source)
    if origin is not None:
        return origin
    folder = source if source.is_dir() else _on_hub(loaded.source)
    ggufs = [] if folder is None or (folder / "config.json").is_file() else sorted(folder.glob("*.gguf"))
    if ggufs:
        return {"(the .gguf file)": sha256(ggufs[0])}
    if folder is None:
        return {}
    own = getattr(loaded.tokenizer, "vocab_files_names", {}).values()
    names = {*_TOKENIZER_FILES, *own, *(path.name for path in folder.glob("*.py"))}
    return {name: sha256(folder / name) for name in sorted(names) if (folder / name).is_file()}


def _on_hub(name: str) -> Path | None:
    """Where the files of a hub name were put."""
    from transformers.utils import cached_file

    try:
        found = cached_file(name, "config.json", local_files_only=True)
    except OSError:
        return None
    return None if found is None else Path(found).parent
