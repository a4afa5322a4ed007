"""The files that GitHub and pre-commit read are well formed, and what they call is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import blockzo

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_whole_and_call_what_is_there(path: Path) -> None:
    flow = read(path)
    # YAML 1.1 reads the key `on` as true
    assert flow["name"] and flow[True] and flow["permissions"]
    for name, job in flow["jobs"].items():
        assert "runs-on" in job and job["steps"], name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if "uses" in step:
                assert re.fullmatch(r"[\w.-]+/[\w./-]+@[\w./-]+", step["uses"])
            else:
                subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)
                for file in re.findall(r"(?<![\w/])(?:\.ci|scripts|tests)/[\w./-]+", step["run"]):
                    assert (ROOT / file).exists(), file


def test_ci_is_one_command_everywhere() -> None:
    steps = read(ROOT / ".github" / "workflows" / "check.yml")["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]


def test_the_pythons_are_the_same_in_classifiers_wheels_and_checks() -> None:
    claimed = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert claimed[0] == re.findall(r'requires-python = ">=([\d.]+)"', PROJECT)[0]
    assert [f"3.{minor}" for minor in re.findall(r'"cp3(\d+)-\*"', PROJECT)] == claimed
    jobs = read(ROOT / ".github" / "workflows" / "check.yml")["jobs"]
    whole = [step["with"]["python-version"] for step in jobs["check"]["steps"] if "with" in step]
    assert sorted(whole + jobs["versions"]["strategy"]["matrix"]["python"]) == sorted(claimed)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_ask_for_something(path: Path) -> None:
    form = read(path)
    assert form["name"] and form["description"]
    assert all(
        part["type"] in ("textarea", "input", "dropdown", "markdown") and part["attributes"] for part in form["body"]
    )


def test_hooks_call_tools_of_the_environment() -> None:
    (local,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    for hook in local["hooks"]:
        tool = hook["entry"].split()[0]
        assert tool.startswith(".venv/bin/") and (tool.endswith("python") or f'"{Path(tool).name}~=' in PROJECT)


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[([^]]+)\]", text, re.M)[0] in ("Unreleased", blockzo.__version__)
    assert f"\n[{blockzo.__version__}]: https://" in text
