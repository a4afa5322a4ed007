"""Real builds: a copy of the source tree, the wheel that a user would get, and subprocesses that use it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.builds import Result, copy_tree, execute, install, pip_wheel


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources without anything built."""
    return copy_tree(tmp_path / "tree")


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = copy_tree(tmp_path_factory.mktemp("sdist") / "tree")
    done = execute([sys.executable, "setup.py", "-q", "sdist", "-d", source.parent], source)
    assert done.returncode == 0, done.stdout
    (archive,) = source.parent.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from the source distribution in its isolated environment, where there is no torch."""
    out = tmp_path_factory.mktemp("wheel")
    done = pip_wheel(sdist, out, isolated=True, BLOCKZO_REQUIRE_NATIVE="1")
    assert done.returncode == 0, done.stdout
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel, to be put on PYTHONPATH."""
    return install(wheel, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="session")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds blockzo as it is installed where there is no compiler."""
    base = tmp_path_factory.mktemp("pure")
    done = pip_wheel(copy_tree(base / "tree"), base / "out", CXX="/bin/false")
    assert done.returncode == 0, done.stdout
    (path,) = (base / "out").glob("*.whl")
    return install(path, base / "installed")


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., Result]:
    """Runs code in a new interpreter that imports blockzo from the folder `package`."""

    def call(code: str, package: Path, *arguments: str, **changes: str | None) -> Result:
        return execute([sys.executable, "-c", code, *arguments], tmp_path, PYTHONPATH=str(package), **changes)

    return call
