"""What is built: from a source distribution, in isolation, with and without a compiler."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.builds import ROOT, Result, execute, install, pip_wheel

# builds wheels
pytestmark = pytest.mark.heavy

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

MOVE = """
import json, torch, blockzo as bz
w = torch.arange(300, dtype=torch.float32).to(torch.bfloat16)
bz.perturb_({"w": w}, bz.Noise(7, "gaussian"), 0.5)
print("VALUES", json.dumps([bz.__file__, w.view(torch.int16).tolist()]))
"""


def moved(result: Result) -> tuple[str, list[int]]:
    assert result.returncode == 0, result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("VALUES ")]
    file, values = json.loads(line.removeprefix("VALUES "))
    return file, values


def build_report(wheel: Path) -> dict[str, object]:
    with zipfile.ZipFile(wheel) as archive:
        report = json.loads(archive.read("blockzo/_build.json"))
    assert isinstance(report, dict)
    return report


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def only(folder: Path) -> Path:
    (path,) = folder.glob("*.whl")
    return path


def test_the_build_needs_neither_torch_nor_numpy() -> None:
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert sorted(part.split(">")[0] for part in requires) == ["pybind11", "setuptools"]


def test_source_distribution_holds_what_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[-1] for name in archive.getnames()}
    native = [
        p
        for p in (ROOT / "csrc").rglob("*")
        if p.suffix in {".h", ".hpp", ".inc", ".inl", ".cpp", ".cu", ".cuh"} and "tests" not in p.parts
    ]
    python = [*(ROOT / "blockzo").rglob("*.py"), *(ROOT / "kernels").glob("*.py")]
    assert native and python
    missing = [p for p in (*native, *python) if p.relative_to(ROOT).as_posix() not in held]
    assert not missing
    assert {"LICENSE", "pyproject.toml", "setup.py", "blockzo/noise-v1-vectors.json", "docs/noise.md"} <= held
    assert not [name for name in held if name.endswith((".so", ".pyc")) or name == "blockzo/_build.json"]


def test_isolated_wheel_is_native_and_complete(wheel: Path) -> None:
    held = names(wheel)
    assert len([name for name in held if name.startswith("blockzo/_native") and name.endswith(".so")]) == 1
    assert {"blockzo/py.typed", "blockzo/noise-v1-vectors.json"} <= set(held)
    kernels = {f"blockzo/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert kernels and kernels <= set(held)
    rows = {f"blockzo/finetune/{path.relative_to(ROOT)}" for path in (ROOT / "data").glob("*/*")}
    assert len(rows) == 6 and rows <= set(held), "the rows of `blockzo demo`, with their terms"
    assert not [name for name in held if not name.startswith(("blockzo/", "blockzo-"))]
    report = build_report(wheel)
    assert report["native"] is True and report["reason"] is None and report["compiler"]
    assert "-ffp-contract=off" in report["flags"]  # type: ignore[operator]


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("METADATA")]
        lines = archive.read(name).decode().splitlines()
        (name,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        scripts = archive.read(name).decode()
    assert "License-Expression: Apache-2.0" in lines and "Requires-Python: >=3.10" in lines
    needed = [line.split(": ")[1] for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert sorted(part.split(">")[0].split(";")[0].strip() for part in needed) == ["msgspec", "numpy", "torch"]
    assert "blockzo = blockzo.cli.main:main" in scripts


def test_vectors_are_those_of_the_contract() -> None:
    shared = ROOT.parent / "shared" / "design" / "noise-v1-vectors.json"
    shipped = json.loads((ROOT / "blockzo" / "noise-v1-vectors.json").read_text())
    assert shipped["contract"] == "blockzo noise v1" and len(shipped["cases"]) == 8
    if shared.is_file():  # a plain clone has no shared folder
        assert shipped == json.loads(shared.read_text())


def test_installed_wheel_gives_the_bits_of_the_checkout(
    installed: Path, python: Callable[..., Result], pure: Path
) -> None:
    file, native = moved(python(MOVE, installed))
    assert Path(file).is_relative_to(installed)
    file, reference = moved(python(MOVE, pure))
    assert Path(file).is_relative_to(pure)
    assert native == reference


def without_compilers(folder: Path) -> str:
    """A PATH that holds no compiler."""
    folder.mkdir()
    return str(folder)


@pytest.mark.parametrize("case", ["no compiler on PATH", "CXX fails", "CXX is missing", "the sources do not compile"])
def test_without_a_working_compiler_the_install_is_pure_and_says_so(tree: Path, tmp_path: Path, case: str) -> None:
    changes: dict[str, str | None] = {"CXXFLAGS": "-O0"}
    expected = "status 1"
    if case == "no compiler on PATH":
        changes["PATH"] = without_compilers(tmp_path / "empty")
        expected = "no C++ compiler found"
    elif case == "CXX fails":
        changes["CXX"] = "/bin/false"
    elif case == "CXX is missing":
        changes["CXX"] = "/nowhere/compiler"
        expected = "no C++ compiler found (tried /nowhere/compiler)"
    else:
        for source in (tree / "csrc").rglob("*.cpp"):
            source.write_text("#error broken on purpose\n")
        expected = "broken on purpose"
    done = pip_wheel(tree, tmp_path / "out", **changes)
    assert done.returncode == 0, done.stdout
    assert "WARNING: blockzo is being installed WITHOUT its native kernels" in done.stdout
    path = only(tmp_path / "out")
    assert not [name for name in names(path) if name.endswith(".so")]
    report = build_report(path)
    assert report["native"] is False and expected in str(report["reason"])

    strict = pip_wheel(tree, tmp_path / "strict", BLOCKZO_REQUIRE_NATIVE="1", **changes)
    assert strict.returncode != 0
    assert not list((tmp_path / "strict").glob("*.whl"))
    for part in ("BLOCKZO_REQUIRE_NATIVE is set", "apt-get install g++", expected):
        assert part in strict.stdout


def test_nothing_stale_reaches_a_wheel(tree: Path, tmp_path: Path) -> None:
    """Extensions of an earlier build in place, and modules deleted since, lie in the tree and in build/."""
    first = pip_wheel(tree, tmp_path / "first", CXX="/bin/false")
    assert first.returncode == 0, first.stdout
    (lib,) = (tree / "build").glob("lib*")
    for folder in (tree / "blockzo", lib / "blockzo"):
        (folder / "_native.cpython-399-old.so").write_bytes(b"stale")
        (folder / "_native.so").write_bytes(b"stale")
    (lib / "blockzo" / "deleted_module.py").write_text("")
    again = pip_wheel(tree, tmp_path / "again", CXX="/bin/false")
    assert again.returncode == 0, again.stdout
    held = names(only(tmp_path / "again"))
    assert not [name for name in held if name.endswith(".so") or "deleted_module" in name]
    assert "blockzo/noise.py" in held


def test_a_failed_build_in_place_removes_the_old_extension(tree: Path) -> None:
    old = tree / "blockzo" / "_native.cpython-399-old.so"
    old.write_bytes(b"stale")
    done = execute([sys.executable, "setup.py", "build_ext", "--inplace"], tree, CXX="/bin/false")
    assert done.returncode == 0, done.stdout
    assert not old.exists()
    assert json.loads((tree / "blockzo" / "_build.json").read_text())["native"] is False


def test_compiler_without_openmp_and_ninja(
    tree: Path, tmp_path: Path, python: Callable[..., Result], pure: Path
) -> None:
    """Plain g++ with nothing around it: slower to build, the same bits."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for tool in ("as", "ld", "sh"):
        (bare / tool).symlink_to(shutil.which(tool) or pytest.fail(f"{tool} is not installed"))
    real = shutil.which("g++") or pytest.fail("g++ is not installed")
    wrapper = bare / "c++"
    wrapper.write_text(f'#!{bare}/sh\nfor a in "$@"; do [ "$a" = -fopenmp ] && exit 1; done\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    done = pip_wheel(
        tree,
        tmp_path / "out",
        PATH=str(bare),
        CXX="c++",
        CXXFLAGS="-O0",
        BLOCKZO_REQUIRE_NATIVE="1",
        TMPDIR=os.fspath(tmp_path),
    )
    assert done.returncode == 0, done.stdout
    path = only(tmp_path / "out")
    report = build_report(path)
    assert report["native"] is True and report["ninja"] is False and "-fopenmp" not in report["flags"]  # type: ignore[operator]
    package = install(path, tmp_path / "installed")
    assert moved(python(MOVE, package))[1] == moved(python(MOVE, pure))[1]
