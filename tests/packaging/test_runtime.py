"""The failure matrix after the install: instruction sets, missing extras, damaged extensions, import order."""

from __future__ import annotations

import json
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.builds import Result

# builds wheels
pytestmark = pytest.mark.heavy

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
MOVE = """
import json, warnings, torch, blockzo as bz
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    w = {n: torch.arange(5000, dtype=torch.float32).to(t) for n, t in (("a", torch.bfloat16), ("b", torch.float32))}
    bz.perturb_(w, bz.Noise(7, "gaussian"), 0.5)
    bz.update_(w, bz.Noise(8), [0.25, -3.0], decay=0.125, stochastic_rounding=True)
from blockzo.ops.backends import choice
backend = choice.serving("cpu")
chosen = backend._native.chosen() if hasattr(backend, "_native") else "reference"
messages = [str(w.message) for w in caught if "blockzo" in str(w.message)]
print("RESULT", json.dumps([chosen, bz.digest(w), messages]))
"""
Python = Callable[..., Result]


def outcome(result: Result) -> tuple[str, str, list[str]]:
    assert result.returncode == 0, result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    chosen, digest, messages = json.loads(line.removeprefix("RESULT "))
    return chosen, digest, messages


def available(python: Python, package: Path) -> list[str]:
    done = python("import torch; from blockzo import _native; print(' '.join(_native.available()))", package)
    assert done.returncode == 0, done.stdout
    return done.stdout.split()


def damaged(pure: Path, target: Path, content: bytes) -> Path:
    """blockzo with an extension that is not one."""
    shutil.copytree(pure, target)
    (target / "blockzo" / f"_native{SUFFIX}").write_bytes(content)
    return target


def test_every_instruction_set_and_the_reference_give_one_result(python: Python, installed: Path, pure: Path) -> None:
    found = available(python, installed)
    assert "baseline" in found
    results = {
        outcome(python(MOVE, installed))[:2],
        *(outcome(python(MOVE, installed, BLOCKZO_ISA=i))[:2] for i in found),
    }
    assert {chosen for chosen, _ in results} == set(found)
    chosen, digest, messages = outcome(python(MOVE, pure))
    assert chosen == "reference" and {d for _, d in results} == {digest}
    assert len(messages) == 1 and "many times slower" in messages[0]
    assert outcome(python(MOVE, installed, BLOCKZO_BACKEND="reference")) == ("reference", digest, [])


def test_unknown_instruction_set_is_a_clear_error(python: Python, installed: Path) -> None:
    done = python(MOVE, installed, BLOCKZO_ISA="sse9")
    assert done.returncode == 1
    assert "ValueError: BLOCKZO_ISA is 'sse9'" in done.stdout and "expected one of" in done.stdout
    assert python("import blockzo", installed, BLOCKZO_ISA="sse9").returncode == 0


def test_import_needs_torch_and_numpy_only(python: Python, installed: Path) -> None:
    block = """
import sys
BLOCKED = {"transformers", "tokenizers", "safetensors", "typer", "click", "rich", "matplotlib", "triton", "flwr",
           "pybind11", "scipy", "gguf", "accelerate", "peft", "datasets", "huggingface_hub"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)
sys.meta_path.insert(0, Blocker())
"""
    assert outcome(python(block + MOVE, installed))[2] == []
    done = python(block + "from blockzo.cli import environment; raise SystemExit(environment.main())", installed)
    assert done.returncode == 0 and "all is well" in done.stdout, done.stdout


@pytest.mark.parametrize(
    "first", ["import torch", "import blockzo", "import numpy, blockzo", "from blockzo.ops.backends import cpu"]
)
def test_import_order_makes_no_difference(python: Python, installed: Path, first: str) -> None:
    """One OpenMP pool serves torch and the kernels, whichever was asked for first."""
    done = python(f"{first}\n{MOVE}\nprint('MAPS', open('/proc/self/maps').read())", installed)
    chosen, _, messages = outcome(done)
    assert chosen != "reference" and not messages
    runtimes = {
        line.split()[-1] for line in done.stdout.split("MAPS")[1].splitlines() if "libgomp" in line or "libiomp" in line
    }
    assert len({Path(path).resolve() for path in runtimes}) <= 1, runtimes


@pytest.mark.parametrize("content", [b"not an extension", b"", b"\x7fELF" + bytes(60)], ids=["text", "empty", "header"])
def test_a_damaged_extension_leaves_the_reference(python: Python, pure: Path, tmp_path: Path, content: bytes) -> None:
    package = damaged(pure, tmp_path / "damaged", content)
    chosen, digest, messages = outcome(python(MOVE, package))
    assert chosen == "reference" and digest == outcome(python(MOVE, pure))[1]
    assert len(messages) == 1 and "cannot be loaded" in messages[0] and "install" in messages[0]
    strict = python(MOVE, package, BLOCKZO_REQUIRE_NATIVE="1")
    assert strict.returncode == 1 and "BLOCKZO_REQUIRE_NATIVE is set" in strict.stdout


def test_pure_install_with_native_required_is_an_error(python: Python, pure: Path) -> None:
    done = python(MOVE, pure, BLOCKZO_REQUIRE_NATIVE="1")
    assert done.returncode == 1 and "BLOCKZO_REQUIRE_NATIVE is set" in done.stdout
