"""CI must notice a skipped test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.packaging.builds import ROOT, Result, execute

SKIPPING = "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('no reason')\n"
MODULE = "import pytest\npytest.skip('all of it', allow_module_level=True)\n"
EXPECTED = "import pytest\n@pytest.mark.xfail(strict=True)\ndef test_a(): assert False\n"
PASSING = "def test_a(): pass\n"


def run_tests(folder: Path, content: str, *options: str) -> Result:
    (folder / "test_it.py").write_text(content)
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "-p", "tests.no_skips", *options, "test_it.py"]
    return execute(command, folder, PYTHONPATH=str(ROOT), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")


@pytest.mark.parametrize("options", [["--no-skips"], ["--no-skips", "-p", "xdist", "-n", "2"]], ids=["here", "workers"])
def test_a_skip_fails_the_run(tmp_path: Path, options: list[str]) -> None:
    done = run_tests(tmp_path, SKIPPING, *options)
    assert done.returncode == 1 and "test_it.py::test_b" in done.stdout.split("skipped although")[1], done.stdout


def test_a_skipped_module_fails_the_run(tmp_path: Path) -> None:
    done = run_tests(tmp_path, MODULE, "--no-skips")
    assert done.returncode != 0 and "skipped although" in done.stdout, done.stdout


@pytest.mark.parametrize("content", [EXPECTED, PASSING], ids=["expected failure", "pass"])
def test_what_is_not_a_skip_passes(tmp_path: Path, content: str) -> None:
    done = run_tests(tmp_path, content, "--no-skips")
    assert done.returncode == 0 and "skipped although" not in done.stdout, done.stdout


def test_without_the_option_skips_pass(tmp_path: Path) -> None:
    assert run_tests(tmp_path, SKIPPING).returncode == 0
