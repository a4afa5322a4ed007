"""What is too old is refused in words, and pyproject.toml says the same as the code."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from blockzo.ops import versions
from blockzo.ops.backends import registry
from tests.packaging.builds import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OLDEST_PYTHON = PROJECT["requires-python"].removeprefix(">=")


def requirements() -> list[Requirement]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    found = [Requirement(line) for lines in lists for line in lines]
    return [one for one in found if one.name != "blockzo"]


def floor(one: Requirement) -> Version | None:
    return max((Version(part.version) for part in one.specifier if part.operator in (">=", "==", "~=")), default=None)


@pytest.mark.parametrize("package", versions.OLDEST)
def test_the_project_asks_for_what_the_code_does(package: str) -> None:
    floors = [found for one in requirements() if one.name == package and (found := floor(one)) is not None]
    assert min(floors).release == versions.OLDEST[package]


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("2.4.1+cu121", True),
        ("1.13.1", True),
        ("2.5.0a0+git1", False),
        ("2.10.0", False),
        ("3.0", False),
        ("git", False),
    ],
)
def test_which_versions_are_too_old(version: str, old: bool) -> None:
    found = versions.too_old("torch", version)
    assert (found is not None) == old
    assert found is None or (version in found and "'torch>=2.5'" in found)


def test_an_old_torch_is_refused_before_it_fails() -> None:
    code = (
        "import torch; torch.__version__ = '2.4.0+cu121'; del torch.library.register_vmap; import blockzo as bz; bz.ZO"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: torch 2.4.0+cu121 is installed; blockzo needs 2.5 or newer: pip install 'torch>=2.5'"
    )


def test_an_old_triton_leaves_gpus_to_torch_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", "3.1.0")
    monkeypatch.setattr(registry.torch, "version", SimpleNamespace(hip=None))
    registry.loaded.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="triton 3.1.0 is installed; blockzo needs 3.6 or newer"):
            assert registry.loaded("gpu") is None
    finally:
        registry.loaded.cache_clear()


def test_what_the_oldest_python_is_asked_to_install_exists_for_it() -> None:
    """As far as installed packages tell: those of the release that is their floor."""
    told = 0
    for one in requirements():
        try:
            installed = metadata.distribution(one.name)
        except metadata.PackageNotFoundError:
            continue
        lowest = floor(one)
        if lowest is None or Version(installed.version).release[:2] != lowest.release[:2]:
            continue
        told += 1
        wanted = one.marker is None or one.marker.evaluate({"python_version": OLDEST_PYTHON})
        pythons = installed.metadata["Requires-Python"] or ""
        assert not wanted or SpecifierSet(pythons).contains(OLDEST_PYTHON), f"{one} needs Python {pythons}"
    assert told
