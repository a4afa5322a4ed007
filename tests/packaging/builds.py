"""Builds and installs as a user makes them, in folders and processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "blockzo", "csrc", "kernels", "docs")
BUILT = shutil.ignore_patterns("*.so", "*.pyc", "__pycache__", "_build.json", "*.egg-info")

NVCC = shutil.which("nvcc") or shutil.which(
    "nvcc", path=os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
)
"""As setup.py finds it."""

TIMEOUT = 900
"""Seconds of a test that builds, or waits for a build: two minutes of one core, which a busy machine shares."""

Result = subprocess.CompletedProcess[str]


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment without what would steer a build or a kernel, then with `changes` (None removes)."""
    steering = ("BLOCKZO_", "PYTHONPATH", "CXX", "CXXFLAGS", "LDFLAGS", "TRITON_")
    result = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    for name, value in changes.items():
        result.pop(name, None)
        if value is not None:
            result[name] = value
    return result


def execute(command: Sequence[str | Path], cwd: Path, **changes: str | None) -> Result:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT - 60,
    )


def extension_objects() -> list[Path]:
    """Those of the kernels that the extension is linked of, brought up to date; none without a build in place or ninja."""
    made = ROOT / "build" / "native"
    # beside the interpreter: another version may not read the log of that which built, and would compile all again
    ninja = shutil.which("ninja", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if ninja is None or not (made / "build.ninja").is_file():
        return []
    # nothing to do after a build; nothing that is in use is written
    done = execute([ninja, "-f", made / "build.ninja"], ROOT)
    if done.returncode:
        raise RuntimeError(done.stdout[-4000:])
    return sorted(made.glob("csrc-cpu-*.o"))


def pip_wheel(source: Path, out: Path, isolated: bool = False, **changes: str | None) -> Result:
    options = [] if isolated else ["--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-cache-dir", "-v", *options, "-w", out, source]
    return execute(command, source.parent, **changes)


# An editable install of the checkout offers its modules for whatever a package of the same name lacks.
ALONE = """import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
"""


def install(wheel: Path, target: Path) -> Path:
    """Puts a wheel's files under `target`: what pip install --target does, without its start-up time."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    (target / "sitecustomize.py").write_text(ALONE)
    return target


def copy_tree(target: Path) -> Path:
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, target / name, ignore=BUILT)
        elif path.is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / name)
    return target
