"""The docs build as a site without a warning: every page is in its menu, every link and anchor leads somewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import blockzo as bz

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    # not --quiet: what it does not print it does not count
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


def test_every_page_is_built(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    for page in pages:
        built = site / ("index.html" if str(page) == "index" else page.parent if page.name == "index" else page)
        assert (built if built.suffix else built / "index.html").is_file(), page


def test_the_reference_tells_every_public_name(site: Path) -> None:
    source = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    page = (site / "api" / "index.html").read_text(encoding="utf-8")
    for name in bz.__all__:
        assert f"::: blockzo.{name}\n" in source, f"docs/api.md lacks {name}"
        # a name that is exported from another module has the anchor of its home too
        assert f'id="blockzo.{name}"' in page, name


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert 'src="http' not in text and 'rel="stylesheet" href="http' not in text, page
