"""What the guard says of counts that are worse, better, new or gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guard.figures import NoFigures, check, committed, differences, write

RECORDED = {"perturb": {"instructions": 1000, "passes": 1.05, "allocations": 2}}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"instructions": 1020, "passes": 1.1, "allocations": 2}, []),
        ({"instructions": 1030, "passes": 1.05, "allocations": 2}, ["1,030 instructions; 1,000 recorded: 3.0% WORSE"]),
        ({"instructions": 970, "passes": 1.05, "allocations": 2}, ["970 instructions; 1,000 recorded: 3.0% better"]),
        ({"instructions": 1000, "passes": 2.05, "allocations": 2}, ["2.05 passes; 1.05 recorded: 95.2% WORSE"]),
        ({"instructions": 1000, "passes": 1.05, "allocations": 3}, ["3 allocations; 2 recorded: 50.0% WORSE"]),
        ({"instructions": 1000, "passes": 1.05}, ["allocations is None; 2 is recorded"]),
    ],
)
def test_counts_of_a_case(found: dict[str, float], said: list[str]) -> None:
    told = differences({"perturb": found}, RECORDED)
    assert len(told) == len(said) and all(part in line for part, line in zip(said, told, strict=True)), told


def test_cases_that_are_new_or_gone() -> None:
    told = differences({"shift": RECORDED["perturb"]}, RECORDED)
    assert told == ["shift: no figure is recorded", "perturb: recorded, and no longer counted"]
    assert differences({}, RECORDED, whole=False) == []


def test_a_section_is_written_alone_and_one_case_a_line(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    write("steps torch 2.13", {"b": {"FLOPs": 1}, "a": {"FLOPs": 2}}, path)
    write("kernels x86_64 GCC 12", RECORDED, path)
    assert list(committed(path)) == ["kernels x86_64 GCC 12", "steps torch 2.13"]
    assert '\n  "a": {"FLOPs": 2},\n  "b": {"FLOPs": 1}\n' in path.read_text()


def test_how_to_accept_is_said(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    write("kernels x86_64 GCC 12", RECORDED, path)
    check("kernels x86_64 GCC 12", RECORDED, path=path)
    with pytest.raises(AssertionError, match=r"python -m tests.guard --write kernels"):
        check("kernels x86_64 GCC 12", {"perturb": {**RECORDED["perturb"], "allocations": 3}}, path=path)


def test_another_compiler_is_told_apart_and_ci_must_have_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "counts.json"
    write("kernels x86_64 GCC 12", RECORDED, path)
    monkeypatch.delenv("BLOCKZO_CI", raising=False)
    with pytest.raises(NoFigures, match=r"for 'kernels x86_64 GCC 15', only for \['kernels x86_64 GCC 12'\]"):
        check("kernels x86_64 GCC 15", RECORDED, path=path)
    monkeypatch.setenv("BLOCKZO_CI", "1")
    with pytest.raises(AssertionError, match="no counts are recorded"):
        check("kernels x86_64 GCC 15", RECORDED, path=path)
