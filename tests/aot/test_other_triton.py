"""The matrix products compiled for Hopper by the oldest Triton that is served, whose waits are others than the installed one's.

pip install --no-deps --target build/tritons/3.6.0 triton==3.6.0
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLDEST = ROOT / "build" / "tritons" / "3.6.0"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_products_do_not_overwrite_what_is_read(slow: bool, tmp_path: Path) -> None:
    if not OLDEST.is_dir():
        pytest.skip(f"no {OLDEST.relative_to(ROOT)}: {(__doc__ or '').splitlines()[2].strip()}")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": f"{OLDEST}{os.pathsep}{ROOT}"}
    version = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    assert subprocess.run(version, env=environment, capture_output=True, text=True).stdout.strip() == OLDEST.name
    command = [sys.executable, str(ROOT / "tests" / "aot" / "kernels.py"), "--arch", "90", "--only", "products"]
    result = subprocess.run([*command, *(["--slow"] if slow else [])], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    for name, found in json.loads(result.stdout).items():
        assert not found["hazards"], name
        assert found["stack"] == found["local"] == 0, name
        assert name.startswith("parts") or found["matrix"] == ["HGMMA"], name
