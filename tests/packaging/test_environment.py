"""`blockzo env` reports whatever is broken, and is never broken by it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from blockzo import ops
from blockzo.cli import environment, selftest
from blockzo.ops import library
from blockzo.ops.backends import cpu, reference, registry
from blockzo.ops.backends.base import FUNCTIONS, Entry
from blockzo.ops.catalogue import KNOWN, OPERATIONS, cases
from tests.packaging.builds import ALONE, Result
from tests.packaging.test_runtime import damaged

Python = Callable[..., Result]
PROBES = ("versions", "machine", "build", "cpu", "threads", "cuda", "backends", "operations", "variables", "self_test")
ENV = "from blockzo.cli import environment; raise SystemExit(environment.main(json=True))"


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("broken on purpose\nwith two lines")


def parsed(result: Result) -> environment.Report:
    report = json.loads(result.stdout)
    assert isinstance(report, dict)
    return report


def test_the_report_is_whole_and_healthy() -> None:
    report = environment.report()
    assert environment.healthy(report), environment.render(report)
    assert json.loads(json.dumps(report)) == report
    assert report["versions"]["torch"] == metadata.version("torch")
    assert report["versions"]["contract"] == "blockzo noise v1"
    assert report["cpu"]["chosen"] in report["cpu"]["available"] and "baseline" in report["cpu"]["compiled"]
    assert set(report["operations"]) == set(OPERATIONS)
    for name, backends in report["operations"].items():
        assert backends["reference"] is True
        assert backends["cpu"] == (True if OPERATIONS[name].serves else "no kernel: torch alone serves")
        assert set(backends) == set(registry.BACKENDS) == set(report["backends"])
    for name, found in report["backends"].items():
        assert found["state"] == "loads" and found.get("experimental", "") == registry.BACKENDS[name].experimental
    assert "never run on a GPU" in environment.render(report)
    sets = len(report["cpu"]["available"])
    walked = len(list(cases("rademacher")))  # on 3 dtypes and 2 distributions
    gpu = int(torch.cuda.is_available())
    # every set of the CPU walks the vectors of low ranks too
    checks = 2 + len(KNOWN) + (sets + gpu) * (1 + walked * 6) + sets
    assert report["self_test"] == {"ok": True, "checks": checks, "failed": []}


def test_no_operation_is_missing_from_the_registry() -> None:
    """A new one needs an entry, and a case that the self-test can walk."""
    public = {name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}
    assert public == set(OPERATIONS)
    registered_names = {name.replace("move_", "perturb_") for name in library.IMPLEMENTATIONS}
    assert registered_names <= set(OPERATIONS)
    walked = {operation.name for operation, _, _ in cases("gaussian")}
    assert walked == {name for name, operation in OPERATIONS.items() if operation.serves is not None}
    assert set(KNOWN) == set(OPERATIONS) - walked
    assert {operation.serves for operation in OPERATIONS.values() if operation.serves} == set(FUNCTIONS)


def test_a_backend_says_what_it_has_no_kernel_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is missing silently: what it takes from the reference is told from its own."""
    flags = dict.fromkeys(("READS_PACKED", "LOW_RANK", "PER_WEIGHT"), False)
    part = SimpleNamespace(**{name: getattr(cpu, name) for name in FUNCTIONS}, **flags)
    monkeypatch.setitem(registry.BACKENDS, "part", Entry("part", "some kernels", ("cpu",), lambda: part))
    part.project = reference.project
    found = environment.operations()
    assert found["project"]["part"] == "no kernel: the reference serves" and found["shift_"]["part"] is True
    del part.project
    found = environment.operations()
    assert all("backend 'part' lacks project" in str(row["part"]) for name, row in found.items() if name != "digest")
    assert "lacks project" in environment.backends()["part"]["state"]
    failed = [check for check in selftest.self_test() if not check.ok]
    assert [check.name for check in failed] == ["part: load"] and "lacks project" in failed[0].detail


@pytest.mark.parametrize("name", PROBES)
def test_any_probe_may_raise(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str) -> None:
    if name != "self_test":
        monkeypatch.setattr(environment, "self_test", lambda: {"ok": True, "checks": 1, "failed": []})
    monkeypatch.setattr(environment, name, broken)
    assert environment.main(json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert {"error": "RuntimeError: broken on purpose\nwith two lines"} in report.values()
    assert len([part for part in report.values() if "error" not in part]) >= len(report) - 2
    assert environment.main(json=False) == 1
    text = capsys.readouterr().out
    assert "broken on purpose" in text and "something is wrong" in text


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (environment.metadata, "version"),
        (environment.platform, "platform"),
        (environment.resources, "files"),
        (environment.importlib.util, "find_spec"),
        (environment.subprocess, "run"),
        (environment.shutil, "which"),
        (environment.os, "cpu_count"),
        (environment.json_module, "loads"),
        (environment.json_module, "dumps"),
        (torch, "get_num_threads"),
        (torch.cuda, "is_available"),
        (environment.Path, "is_file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_below_may_raise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], owner: object, name: str
) -> None:
    monkeypatch.setattr(owner, name, broken)
    monkeypatch.setattr(environment, "self_test", lambda: {"ok": True, "checks": 1, "failed": []})
    assert environment.main(json=True) in (0, 1)
    assert environment.main(json=False) in (0, 1)
    out = capsys.readouterr().out
    monkeypatch.undo()
    assert "broken on purpose" in out and "python" in out


def test_credentials_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("BLOCKZO_ISA", "baseline")
    assert environment.variables()["HF_TOKEN"] == "(set)" and environment.variables()["BLOCKZO_ISA"] == "baseline"


def test_a_pure_install_says_why(python: Python, pure: Path) -> None:
    done = python(ENV, pure)
    report = parsed(done)
    assert done.returncode == 0 and report["self_test"]["ok"] is True
    assert report["build"]["native"] is False and "/bin/false" in report["build"]["reason"]
    assert (
        "/bin/false" in report["operations"]["perturb_"]["cpu"]
        and report["operations"]["perturb_"]["reference"] is True
    )


@pytest.mark.parametrize("kind", ["text", "truncated", "kills its process"])
def test_a_damaged_extension_is_reported(
    python: Python, installed: Path, pure: Path, tmp_path: Path, kind: str
) -> None:
    (real,) = (installed / "blockzo").glob("_native*.so")
    content = {"text": b"not an extension", "truncated": real.read_bytes()[: real.stat().st_size // 2]}.get(
        kind, b"stub"
    )
    package = damaged(pure, tmp_path / "damaged", content)
    if kind == "kills its process":
        # any process that comes to load the extension dies as from an illegal instruction
        (package / "sitecustomize.py").write_text(
            f"{ALONE}import importlib.machinery as m, os, signal\n"
            "m.ExtensionFileLoader.create_module = (lambda old: lambda self, spec: os.kill(os.getpid(), signal.SIGILL)\n"
            "    if spec.name == 'blockzo._native' else old(self, spec))(m.ExtensionFileLoader.create_module)\n"
        )
    done = python(ENV, package)
    report = parsed(done)
    assert done.returncode == 1
    assert "cannot be loaded" in report["cpu"]["error"] and "install blockzo again" in report["cpu"]["error"]
    assert report["self_test"]["ok"] is False
    expected = "signal" if kind == "kills its process" else "cpu: load"
    assert expected in json.dumps(report["self_test"]["failed"]) or kind == "truncated"
    served = [o["cpu"] for o in report["operations"].values() if o["cpu"] != "no kernel: torch alone serves"]
    assert len(served) >= 8 and all("cannot be loaded" in reason for reason in served)


def test_an_unknown_instruction_set_is_reported(python: Python, installed: Path) -> None:
    done = python(ENV, installed, BLOCKZO_ISA="sse9")
    report = parsed(done)
    assert done.returncode == 1
    assert "BLOCKZO_ISA is 'sse9'; expected one of" in report["cpu"]["error"]
    assert report["environment"]["BLOCKZO_ISA"] == "sse9"


def test_the_self_test_finds_wrong_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(check.ok for check in selftest.self_test())
    good = cpu.replay_

    def wrong(found: list, steps: list) -> None:  # type: ignore[type-arg]
        good(found, steps)
        for target in found:
            if target.tensor.dtype == torch.float16:
                target.tensor.view(torch.int16)[-1] ^= 1

    monkeypatch.setattr(cpu, "replay_", wrong)
    failed = [check for check in selftest.self_test() if not check.ok]
    assert failed and all("float16" in check.name and "bfloat16" not in check.name for check in failed)
    assert {check.name.split(": ")[1].split()[0] for check in failed} == {"replay_", "update_"}
    assert "expected" in failed[0].detail
    monkeypatch.setattr(cpu, "replay_", broken)
    failed = [check for check in selftest.self_test() if not check.ok]
    assert all("broken on purpose" in check.detail for check in failed)


def test_the_self_test_knows_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = selftest.vectors()
    cases[5]["bits"][3] = "3f800001"
    monkeypatch.setattr(selftest, "vectors", lambda: cases)
    failed = {check.name for check in selftest.self_test() if not check.ok}
    assert "reference: vectors" in failed and any("cpu" in name for name in failed)
