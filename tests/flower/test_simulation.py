"""The example app under `flwr run` in Flower's simulation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from blockzo.federated.flower.loopback import OFFLINE, free_port, wait_for_port
from blockzo.federated.flower.plan import server_folder
from blockzo.federated.flower.supervise import Supervised
from tests.flower.conftest import APP, CONFIG, RUN_CONFIG


def test_simulation_ends_with_the_digest_of_one_process(expected: str, tmp_path: Path) -> None:
    home, port = tmp_path / "flwr", free_port()
    home.mkdir()
    text = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(text)
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    environment = {**os.environ, **OFFLINE, "FLWR_HOME": str(home), "PATH": path}
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    superlink = Supervised(command, environment, tmp_path / "superlink.log").start()
    options = [part for setting in RUN_CONFIG for part in ("--run-config", setting)]
    resources = "num-supernodes=2 client-resources-num-cpus=1 client-resources-num-gpus=0.0"
    try:
        wait_for_port(port, 60)
        run = ["flwr", "run", str(APP), "here", "--stream", "--federation-config", resources, *options]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=200, check=False)
    finally:
        superlink.stop()
    path_of_result = server_folder({"run-name": "demo"}) / "result.json"
    assert path_of_result.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(path_of_result.read_text())
    assert result["digest"] == expected
    assert {c["digest"] for c in result["clients"].values()} == {expected}
    assert sorted(result["clients"]) == ["client-0", "client-1"]
    assert result["rounds"] == CONFIG["rounds"] and not result["refusals"]
