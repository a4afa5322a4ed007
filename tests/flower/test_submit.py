"""A run is kept going by who submits it: one server at a time, another one when it is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blockzo.federated.flower import submit
from blockzo.federated.flower.plan import is_served, serving
from blockzo.federated.flower.submit import Submission

# waits against the clock
pytestmark = pytest.mark.apart

FLWR = """#!{python}
# stands for Flower: `run` starts a server that ends without a result the first time
import json, subprocess, sys
from pathlib import Path
if sys.argv[1] == "list":
    print(json.dumps({{"runs": [{{"status": "running"}}]}}))
    sys.exit()
tries = Path({folder!r}) / "tries"
number = len(tries.read_text()) if tries.exists() else 0
tries.write_text("x" * (number + 1))
if number == 0:
    sys.exit("no SuperLink there")
subprocess.Popen([sys.executable, {server!r}, {folder!r}, str(number)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(json.dumps({{"run-id": number}}))
"""
SERVER = """
import json, sys, time
from pathlib import Path
from blockzo.federated.flower.plan import serving

folder = Path(sys.argv[1])
with serving(folder):
    time.sleep(1)
    if sys.argv[2] == "2":
        (folder / "result.json").write_text(json.dumps({"rounds": 7}))
"""


def test_a_run_has_one_server(tmp_path: Path) -> None:
    assert not is_served(tmp_path)
    with serving(tmp_path):
        assert is_served(tmp_path)
        code = "from pathlib import Path; from blockzo.federated.flower.plan import serving\n"
        code += f"with serving(Path({str(tmp_path)!r}), 0.3): pass"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1 and "another server runs in" in done.stderr
    assert not is_served(tmp_path)


def test_a_server_that_is_gone_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "REST", 0.1)
    monkeypatch.setattr(submit, "GONE", 0.5)
    run = Submission(tmp_path, "site", "demo", ["rounds=7"], tmp_path / "state", None)
    server = tmp_path / "server.py"
    server.write_text(SERVER)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "flwr"
    command.write_text(FLWR.format(python=sys.executable, folder=str(run.folder), server=str(server)))
    command.chmod(0o755)
    run.environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    monkeypatch.setenv("PATH", run.environment["PATH"])
    (run.folder / "result.json").write_text(json.dumps({"rounds": "of an earlier run"}))
    began = time.monotonic()
    assert run.result(60) == {"rounds": 7}
    assert run.submitted == 2 and time.monotonic() - began < 50
    with pytest.raises(TimeoutError, match="no result in"):
        Submission(tmp_path, "site", "other", [], tmp_path / "state", run.environment).result(0.0)
