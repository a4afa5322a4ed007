"""Real builds: a copy of the source tree, the wheel that a user would get, and subprocesses that use it."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.builds import TIMEOUT, Result, copy_tree, execute, install, pip_wheel


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources without anything built."""
    return copy_tree(tmp_path / "tree")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path]) -> Path:
    """What `make` puts into a folder; of several workers the first makes it, and the others wait."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return make(factory.mktemp(name))
    # the workers' folders lie side by side in that of the run
    folder = factory.getbasetemp().parent / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "made"
        if not made.exists():
            folder.mkdir(exist_ok=True)
            made.write_text(str(make(folder)))
        return Path(made.read_text())


def make_sdist(folder: Path) -> Path:
    source = copy_tree(folder / "tree")
    done = execute([sys.executable, "setup.py", "-q", "sdist", "-d", folder], source)
    assert done.returncode == 0, done.stdout
    (archive,) = folder.glob("*.tar.gz")
    return archive


def make_pure(folder: Path) -> Path:
    done = pip_wheel(copy_tree(folder / "tree"), folder / "out", CXX="/bin/false")
    assert done.returncode == 0, done.stdout
    (path,) = (folder / "out").glob("*.whl")
    return install(path, folder / "installed")


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "sdist", make_sdist)


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from the source distribution in its isolated environment, where there is no torch."""

    def make(folder: Path) -> Path:
        # the build in place is optimised as users' are; bits do not depend on it
        done = pip_wheel(sdist, folder, isolated=True, BLOCKZO_REQUIRE_NATIVE="1", CXXFLAGS="-O1")
        assert done.returncode == 0, done.stdout
        (path,) = folder.glob("*.whl")
        return path

    return once(tmp_path_factory, "wheel", make)


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel, to be put on PYTHONPATH."""
    return install(wheel, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="session")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds blockzo as it is installed where there is no compiler."""
    return once(tmp_path_factory, "pure", make_pure)


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., Result]:
    """Runs code in a new interpreter that imports blockzo from the folder `package`."""

    def call(code: str, package: Path, *arguments: str, **changes: str | None) -> Result:
        return execute([sys.executable, "-c", code, *arguments], tmp_path, PYTHONPATH=str(package), **changes)

    return call
