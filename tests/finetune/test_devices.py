"""Devices: by name, the dtype for one, and that no tensor is left on another.

Where there is no GPU, runs go to a device that is not there (`far.py`), whose tensors refuse those of the CPU as a GPU's do.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blockzo.finetune import memory
from blockzo.finetune.errors import UserError
from blockzo.finetune.models import devices
from blockzo.finetune.models.devices import find_device, put, settled
from blockzo.finetune.resuming import resumed
from blockzo.finetune.settings import Settings
from tests.finetune.process import REPOSITORY, environment

Rows = Callable[..., Path]
Tiny = Callable[[str], Path]


@pytest.fixture
def gpus(monkeypatch: Any) -> Callable[..., None]:
    """gpus(count, bfloat16): torch says that it has so many."""

    def have(count: int, bfloat16: bool = True) -> None:
        fake = SimpleNamespace(
            is_available=lambda: count > 0,
            device_count=lambda: count,
            is_bf16_supported=lambda: bfloat16,
            mem_get_info=lambda device: (1 << 20, 1 << 30),
            reset_peak_memory_stats=lambda device: None,
            max_memory_allocated=lambda device: 12345,
            synchronize=lambda device: None,
        )
        monkeypatch.setattr(devices.torch, "cuda", fake)

    return have


def test_a_device_by_its_name(gpus: Any) -> None:
    gpus(0)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="--device is cuda:1, but .*use --device cpu"):
        find_device("cuda:1")
    gpus(2)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1) and find_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="there are 2 GPUs, cuda:0 to cuda:1"):
        find_device("cuda:2")


def test_the_dtype_suits_the_device_and_a_named_one_stays(gpus: Any) -> None:
    gpus(1)
    assert settled(Settings("m")).dtype == "bfloat16"
    assert settled(Settings("m", device="cpu")).dtype == "float32"
    assert settled(Settings("m", dtype="float16")).dtype == "float16"
    gpus(1, bfloat16=False)
    assert settled(Settings("m")).dtype == "float16"
    gpus(0)
    assert settled(Settings("m")).dtype == "float32"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "", "CPU", "mps"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="--device is .*expected auto, cpu, cuda, or a numbered GPU"):
        Settings("m", device=name)


def test_a_model_larger_than_the_device_is_refused_in_words(gpus: Any) -> None:
    gpus(1)
    with pytest.raises(UserError, match=r"take 2.00 GB, cuda:0 has 0.00 GB free.*device_map.*--device cpu"):
        put(torch.nn.Linear(1, 1), torch.device("cuda", 0), "big", 2 * 10**9)


def test_a_continued_run_may_go_elsewhere_with_the_dtype_it_has() -> None:
    old = Settings("m", dtype="bfloat16", device="cuda")
    again = resumed(old, {"device": "cpu", "dtype": "auto"})
    assert (again.device, again.dtype) == ("cpu", "bfloat16")
    with pytest.raises(UserError, match="--dtype was bfloat16, now float32"):
        resumed(old, {"dtype": "float32"})


def test_peak_memory_of_a_gpu_is_what_torch_had_there(gpus: Any) -> None:
    gpus(1)
    with memory.peak(torch.device("cuda", 0)) as found:
        pass
    assert found.nbytes == 12345


@pytest.mark.heavy
def test_runs_elsewhere_leave_no_tensor_behind(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    own = {
        "task": "custom",
        "template": "{text} it was {label}.",
        "labels": "0=bad,1=good",
        "train": str(rows(8)),
        "validation": str(rows(8, "held.tsv")),
        "batch": 2,
        "steps": 1,
        "lr": "1e-3",
    }
    text = {"task": "lm", "train": own["train"], "max_length": 16}
    columns = "prompt=text,completion=label"
    written = {"task": "sft", "train": own["train"], "columns": columns, "metrics": "f1", "max_new_tokens": 2}
    asked = {
        "folder": str(tmp_path),
        "finetune": [{"model": str(tiny("llama")), **own}],
        "score": [{"model": str(tiny(name)), **own} for name in ("opt", "roberta", "encoder")]
        + [{"model": str(tiny("gpt2")), **text}, {"model": str(tiny("llama")), **written}],
    }
    called = subprocess.run(
        [sys.executable, "-m", "tests.finetune.on_far", json.dumps(asked)],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert called.returncode == 0, called.stderr
    found = json.loads(called.stdout)
    for case in found["finetune"]:
        near, far = case["near"], case["far"]
        assert near["device"] == "cpu" and far["device"] == far["scored"].pop("device") == "privateuseone:0"
        assert far["again"] == far["digest"] and near["again"] == near["digest"]
        # another backend makes the same noise; sums run in another order
        assert far["losses"] == pytest.approx(near["losses"], rel=1e-5)
        for scored in (near["after"], far["scored"]):
            assert far["after"] == pytest.approx(scored, rel=1e-5)
    for case in found["score"]:
        assert case["far"] == pytest.approx(case["near"], rel=1e-4)
    assert found["score"][-1]["far writes"] == found["score"][-1]["near writes"] and found["score"][-1]["far writes"][0]
