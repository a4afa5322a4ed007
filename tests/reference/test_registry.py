"""The registry of backends: what it holds, which one serves, what is said of one that is missing; and the example of the docs."""

from __future__ import annotations

import ast
import importlib.util
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import blockzo as bz
from blockzo.cli import environment, selftest
from blockzo.ops import backends
from blockzo.ops.backends import choice, reference, registry
from blockzo.ops.backends.base import FUNCTIONS, Absent, Backend, Entry
from blockzo.ops.catalogue import cases

PAGE = Path(__file__).parents[2] / "docs" / "extending" / "backend.md"
FLAGS = {"READS_PACKED": False, "LOW_RANK": True, "PER_WEIGHT": True}
WHOLE = SimpleNamespace(**{name: getattr(reference, name) for name in FUNCTIONS}, **FLAGS)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has chosen nothing yet, with a registry and an environment of its own."""
    monkeypatch.setattr(registry, "BACKENDS", dict(registry.BACKENDS))
    monkeypatch.setattr(choice, "BACKENDS", registry.BACKENDS)
    monkeypatch.setattr(selftest, "BACKENDS", registry.BACKENDS)
    for name in ("BLOCKZO_BACKEND", "BLOCKZO_REQUIRE_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    forget()
    yield
    forget()


def forget() -> None:
    choice.serving.cache_clear()
    registry.loaded.cache_clear()


def add(name: str, device: str, error: Exception | None = None, first: bool = False, **more: object) -> None:
    def load() -> Backend:
        if error is not None:
            raise error
        return WHOLE

    entry = Entry(name, "kernels of a test", (device,), load, advice="do this", **more)  # type: ignore[arg-type]
    others = dict(registry.BACKENDS)
    registry.BACKENDS.clear()
    registry.BACKENDS.update({name: entry} | others if first else others | {name: entry})


@pytest.mark.parametrize("name", registry.BACKENDS)
def test_a_backend_that_loads_here_has_all_operations(name: str) -> None:
    found = registry.BACKENDS[name].open()
    assert all(callable(getattr(found, function)) for function in FUNCTIONS) and found.READS_PACKED in (True, False)


def test_one_that_lacks_an_operation_is_refused() -> None:
    part = SimpleNamespace(**{name: getattr(reference, name) for name in FUNCTIONS if name != "project"})
    entry = Entry("part", "some kernels", ("cpu",), lambda: part)
    with pytest.raises(TypeError, match="backend 'part' lacks project; expected all of perturb_, .*backends.reference"):
        entry.open()


def test_the_first_that_serves_a_device_and_loads_is_taken() -> None:
    assert choice.serving("cpu") is registry.loaded("cpu") is not reference
    assert choice.serving("meta") is reference
    add("broken", "meta", ImportError("no such chip"))
    add("one", "meta")
    add("two", "meta")
    forget()
    with pytest.warns(RuntimeWarning, match=r"the broken backend .*no such chip.*torch reference serves.*: do this"):
        assert choice.serving("meta") is registry.loaded("one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choice.serving.cache_clear()
        assert choice.serving("meta") is WHOLE  # said once
    assert choice.for_tensor(torch.zeros(1)) is registry.loaded("cpu")


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    add("other", "cpu")
    monkeypatch.setenv("BLOCKZO_BACKEND", "other")
    assert choice.serving("cpu") is WHOLE and choice.serving("cuda") is reference
    forget()
    monkeypatch.setenv("BLOCKZO_BACKEND", "reference")
    assert choice.serving("cpu") is reference
    forget()
    monkeypatch.setenv("BLOCKZO_BACKEND", "nothing")
    with pytest.raises(ValueError, match="BLOCKZO_BACKEND is 'nothing'; expected one of cpu, gpu, reference, other"):
        choice.serving("cpu")


def test_what_is_asked_for_must_load(monkeypatch: pytest.MonkeyPatch) -> None:
    add("broken", "cpu", ImportError("no such chip"), first=True, required_by="BLOCKZO_MUST")
    monkeypatch.setenv("BLOCKZO_MUST", "1")
    with pytest.raises(ImportError, match="no such chip.* and BLOCKZO_MUST is set; do this"):
        choice.serving("cpu")
    monkeypatch.delenv("BLOCKZO_MUST")
    monkeypatch.setenv("BLOCKZO_BACKEND", "broken")
    with pytest.raises(ImportError, match="no such chip.* and BLOCKZO_BACKEND is set; do this"):
        choice.serving("cpu")


def test_a_torch_for_rocm_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.0")
    with pytest.warns(RuntimeWarning, match="ROCm"):
        assert choice.serving("cuda") is reference


@pytest.mark.parametrize("error", [Absent("not here"), ModuleNotFoundError("no module")])
def test_what_is_not_installed_is_no_failure_of_the_self_test(error: Exception) -> None:
    add("absent", "cpu", error)
    assert selftest.checks_of(registry.BACKENDS["absent"]) == []
    assert str(error) in environment.backends()["absent"]["state"]


def test_what_is_damaged_is_one() -> None:
    add("broken", "cpu", ImportError("half a file"))
    (check,) = selftest.checks_of(registry.BACKENDS["broken"])
    assert not check.ok and check.name == "broken: load" and "half a file" in check.detail


def test_the_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module and its line, as they are printed: it is walked, told of, chosen, and gives the reference's bits."""
    module, line = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "counting.py"
    file.write_text(module, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("blockzo.ops.backends.counting", file)
    assert spec is not None and spec.loader is not None
    counting = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(counting)
    monkeypatch.setattr(backends, "counting", counting, raising=False)
    names: dict[str, object] = {"Backend": Backend, "Entry": Entry}
    exec(line, names)
    entry = names["COUNTING"]
    assert isinstance(entry, Entry)
    registry.BACKENDS["counting"] = entry

    checks = selftest.checks_of(entry)
    assert len(checks) == 1 + 6 * len(list(cases("gaussian", per_weight=False))) and all(check.ok for check in checks)
    # fill_ is served by it too
    assert counting.calls["perturb_"] == 2 * 6 * len(selftest.SIZES)
    rows = environment.operations()
    assert rows["perturb_"]["counting"] is True and rows["project"]["counting"] == "no kernel: the reference serves"

    counting.calls.clear()
    monkeypatch.setenv("BLOCKZO_BACKEND", "counting")
    found, expected = torch.arange(300.0), torch.arange(300.0)
    bz.perturb_({"w": found}, bz.Noise(3, "gaussian"), 0.5)
    assert counting.calls == {"perturb_": 1}
    forget()
    monkeypatch.setenv("BLOCKZO_BACKEND", "reference")
    bz.perturb_({"w": expected}, bz.Noise(3, "gaussian"), 0.5)
    assert torch.equal(found, expected) and counting.calls == {"perturb_": 1}


def test_what_never_ran_on_its_device_says_so() -> None:
    """In the registry, so in `blockzo env`; in every module of it; on its page."""
    assert registry.BACKENDS["gpu"].experimental == "compiled and interpreted, never run on a GPU"
    root = Path(__file__).parents[2]
    modules = [root / "blockzo/optim/graphed.py", *(root / "kernels").glob("*.py")]
    for path in (*modules, *(root / "blockzo/ops/backends/gpu").glob("*.py")):
        told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert re.search(r"^Experimental: .*never (run )?on a GPU", told, re.MULTILINE), path.name
    assert "**Experimental**: compiled and interpreted, never run on a GPU." in (root / "docs/gpu.md").read_text()
