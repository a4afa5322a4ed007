"""The example app under `flwr run` in Flower's simulation, and one real model through all three engines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blockzo.federated.flower import text
from blockzo.federated.flower.loopback import OFFLINE, Deployment, free_port, wait_for_port
from blockzo.federated.flower.places import private_folder
from blockzo.federated.flower.plan import server_folder
from blockzo.federated.flower.supervise import Supervised
from blockzo.federated.signing import make_key, make_roster
from tests.flower.conftest import APP, CONFIG, RUN_CONFIG, digest_in_process, flower_config

# Ray takes every core
pytestmark = pytest.mark.apart


def simulate(folder: Path, run_config: list[str]) -> dict[str, Any]:
    """What the server wrote as result, of a simulation with two nodes."""
    home, port = folder / "flwr", free_port()
    home.mkdir()
    config = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(config)
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    environment = {**os.environ, **OFFLINE, "FLWR_HOME": str(home), "PATH": path}
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    superlink = Supervised(command, environment, folder / "superlink.log").start()
    options = [part for setting in run_config for part in ("--run-config", setting)]
    resources = "num-supernodes=2 client-resources-num-cpus=1 client-resources-num-gpus=0.0"
    try:
        wait_for_port(port, 60)
        run = ["flwr", "run", str(APP), "here", "--stream", "--federation-config", resources, *options]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=250, check=False)
    finally:
        superlink.stop()
    result = server_folder({"run-name": "demo"}) / "result.json"
    assert result.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(result.read_text())
    lines = [json.loads(line) for line in (result.parent / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(found["rounds"]))
    assert all(line["epsilon"] is None and 0 < line["loss"] < 5 for line in lines)
    return found


def test_simulation_ends_with_the_digest_of_one_process(expected: str, tmp_path: Path) -> None:
    result = simulate(tmp_path, RUN_CONFIG)
    assert result["digest"] == expected
    assert {c["digest"] for c in result["clients"].values()} == {expected}
    assert sorted(result["clients"]) == ["client-0", "client-1"]
    assert result["rounds"] == CONFIG["rounds"] and not result["refusals"]


@pytest.mark.slow
def test_simulation_with_secure_sums_ends_with_the_digest_of_one_process(tmp_path: Path) -> None:
    config = {**CONFIG, "secure-sum": True}
    expected = digest_in_process(tmp_path, config)
    # no node has a configuration of its own there: keys and roster lie in the clients' state folders
    state = Path(os.environ["BLOCKZO_STATE"])
    keys = [make_key(tmp_path / "keys", f"client-{number}") for number in range(config["clients"])]
    for key in keys:
        own = private_folder(private_folder(state) / key.stem)
        shutil.copy(key, own / "signing-key")
        make_roster(own / "roster", keys)
    result = simulate(tmp_path, flower_config(config))
    assert {result["digest"], *(c["digest"] for c in result["clients"].values())} == {expected}
    assert result["rounds"] == CONFIG["rounds"] and not result["refusals"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_model_has_one_digest_in_all_three_engines(tmp_path: Path) -> None:
    model = APP.parents[2] / "shared" / "models" / "stories15M"
    if not model.is_dir():
        pytest.skip("stories15M is not beside the repository")
    module = "blockzo.federated.flower.text"
    task = {"model": str(model), "task": "sst2", "partition": "iid", "batch": 8, "lr": "1e-5", "inner": 2}
    config = {**CONFIG, "deadline": 120.0, **task, "factory": f"{module}:worker", "plan": f"{module}:plan"}
    expected = digest_in_process(tmp_path, config, text)
    (tmp_path / "simulation").mkdir()
    (tmp_path / "deployment").mkdir()
    results = [simulate(tmp_path / "simulation", flower_config(config))]
    with Deployment(tmp_path / "deployment", 2) as deployment:
        results.append(deployment.run(APP, "demo", flower_config(config), 400))
    for result in results:
        assert {result["digest"], *(client["digest"] for client in result["clients"].values())} == {expected}
