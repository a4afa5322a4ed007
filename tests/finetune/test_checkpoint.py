"""Whatever happens to a checkpoint, it loads to the bits of the sound one, or the error names the weight or the file."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blockzo import digest
from blockzo.finetune.errors import UserError
from blockzo.finetune.models.loading import Loaded, load, save

Tiny = Callable[[str], Path]
State = dict[str, Tensor]
MODELS = {"bert": "auto", "encoder": "auto", "llama": "auto", "qwen2": "auto", "gpt2": "auto", "mpnet": "mean"}


def read(folder: Path | str, head: str = "auto", **options: Any) -> Loaded:
    return load(str(folder), "float32", head, classes=2, **options)


def changed(source: Path, folder: Path, change: Callable[[State], State | None]) -> Path:
    """A copy of the model folder with other weights."""
    shutil.copytree(source, folder)
    state = load_file(folder / "model.safetensors")
    state = change(state) or state
    save_file({n: t.clone() for n, t in state.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def sound(tiny: Tiny) -> dict[str, tuple[Path, str, list[str]]]:
    """name -> folder, digest, names of the weights in its file."""
    found = {}
    for name, head in MODELS.items():
        folder = tiny(name)
        found[name] = (folder, digest(read(folder, head).model), sorted(load_file(folder / "model.safetensors")))
    return found


KINDS = (
    "drop",
    "rename",
    "reshape",
    "prefix one",
    "wrap all",
    "prefix all",
    "wrap inside",
    "twice",
    "integers",
    "nan",
    "add",
)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(sorted(MODELS)), kind=st.sampled_from(KINDS), number=st.integers(0, 10_000), data=st.data())
def test_any_change_of_any_weight(
    sound: dict[str, tuple[Path, str, list[str]]], name: str, kind: str, number: int, data: Any
) -> None:
    check_change(sound, name, kind, number, data.draw(st.sampled_from(("module.", "_orig_mod.", "module._orig_mod."))))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_weight(sound: dict[str, tuple[Path, str, list[str]]], name: str, kind: str) -> None:
    for number in range(len(sound[name][2])):
        check_change(sound, name, kind, number, "module.")


def check_change(
    sound: dict[str, tuple[Path, str, list[str]]], name: str, kind: str, number: int, wrapper: str
) -> None:
    source, right, names = sound[name]
    key = names[number % len(names)]

    def change(state: State) -> State | None:
        tensor = state[key]
        if kind in ("drop", "rename", "prefix one"):
            del state[key]
        if kind == "rename":
            state[key.replace(".", "_", 1) + "x"] = tensor
        elif kind == "reshape":
            state[key] = tensor[:-1] if len(tensor) > 1 else torch.cat([tensor, tensor])
        elif kind == "prefix one":
            state[wrapper + key] = tensor
        elif kind == "wrap all":
            return {wrapper + n: t for n, t in state.items()}
        elif kind == "prefix all":
            return {"net." + n: t for n, t in state.items()}
        elif kind == "wrap inside":
            return {n.replace(".", f".{wrapper}", 1): t for n, t in state.items()}
        elif kind == "twice":
            state[wrapper + key] = tensor + 1
        elif kind == "integers":
            state[key] = torch.ones(tensor.shape, dtype=torch.int8)
        elif kind == "nan":
            state[key] = torch.cat([tensor.flatten()[:-1], tensor.new_tensor([float("nan")])]).view(tensor.shape)
        elif kind == "add":
            state[key.rpartition(".")[0] + ".another"] = tensor
        return state

    with tempfile.TemporaryDirectory() as place:
        folder = changed(source, Path(place) / name, change)
        try:
            loaded = read(folder, MODELS[name])
        except UserError as error:
            # an encoder's weights are told without the prefix of its base model
            told = key.removeprefix("mpnet.") if kind != "add" else ".another"
            if kind == "rename" and unused(name, key):
                # the old name is not missed; the new one is nobody's
                told = key.replace(".", "_", 1) + "x"
            assert told in str(error) and str(folder) in str(error), f"{kind} of {key}: {error}"
            assert kind not in ("wrap all", "prefix all", "prefix one", "wrap inside"), f"{kind} of {key}: {error}"
            return
    assert digest(loaded.model) == right, f"{kind} of {key} loads other weights without a word"
    if kind in ("wrap all", "prefix all", "prefix one", "wrap inside") and not unused(name, key):
        assert any("taken off" in note for note in loaded.notes), f"{kind} of {key} is mended without a word"
    assert kind in ("wrap all", "prefix all", "prefix one", "wrap inside") or unused(name, key), (
        f"{kind} of {key} passes"
    )


def unused(name: str, key: str) -> bool:
    """Heads and poolers that an encoder is loaded without."""
    return (name == "mpnet" and key.startswith("lm_head")) or (name == "encoder" and key.startswith("pooler"))


@pytest.mark.parametrize("layers", [2, 6])
def test_half_of_the_layers(tiny: Tiny, tmp_path: Path, layers: int) -> None:
    shutil.copytree(tiny("llama"), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    with pytest.raises(UserError, match=r"model\.layers\.[24]\.input_layernorm\.weight"):
        read(tmp_path / "m")


def test_wrappers_as_torch_makes_them(tiny: Tiny, tmp_path: Path) -> None:
    model = read(tiny("llama")).model
    wrapper = nn.Module()
    wrapper.module = torch.compile(model)
    for kind in ("safetensors", "bin"):
        shutil.copytree(tiny("llama"), tmp_path / kind)
        state = {n: t for n, t in wrapper.state_dict().items() if kind == "bin" or "lm_head" not in n}
        assert all(n.startswith("module._orig_mod.") for n in state)
        (tmp_path / kind / "model.safetensors").unlink()
        if kind == "bin":
            torch.save(state, tmp_path / kind / "pytorch_model.bin")
        else:
            save_file(state, tmp_path / kind / "model.safetensors", {"format": "pt"})
        found = read(tmp_path / kind)
        assert digest(found.model) == digest(model) and "`_orig_mod.` and `module.`" in found.notes[0]
        save(found, tmp_path / f"{kind} saved")
        again = read(tmp_path / f"{kind} saved")
        assert again.notes == [] and digest(again.model) == digest(model), "the prefix must not come back"


def test_tied_weights_that_differ_are_told(tiny: Tiny, tmp_path: Path) -> None:
    def untie(state: State) -> None:
        state["lm_head.weight"] = state["model.embed_tokens.weight"] + 1

    notes = read(changed(tiny("llama"), tmp_path / "m", untie)).notes
    assert len(notes) == 1 and "the file has different weights for them" in notes[0]


def test_parts_that_no_task_reads_are_named_or_zero(tiny: Tiny, tmp_path: Path) -> None:
    assert "pooler.dense.bias, pooler.dense.weight" in read(tiny("encoder")).notes[0]
    assert "cls.predictions.bias" in read(tiny("bert"), "mean").notes[0]

    def old(state: State) -> None:
        state["bert.embeddings.position_ids"] = torch.arange(64).unsqueeze(0)

    assert read(changed(tiny("bert"), tmp_path / "old", old)).notes == []


def broken(folder: Path, name: str) -> Path:
    """Makes one thing wrong with a sound folder; the file that the message has to name."""
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    if name == "empty":
        weights.write_bytes(b"")
    elif name == "cut":
        weights.write_bytes(whole[:-5])
    elif name == "cut header":
        weights.write_bytes(whole[:100])
    elif name == "longer":
        weights.write_bytes(whole + b"more")
    elif name == "noise":
        weights.write_bytes(bytes(range(256)) * 9)
    elif name == "pointer":
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif name == "page":
        weights.write_bytes(b"<!DOCTYPE html><html>404</html>")
    elif name == "deep header":
        text = b"[" * 100_000
        weights.write_bytes(len(text).to_bytes(8, "little") + text)
    elif name == "program":
        weights.unlink()
        torch.save({"a": broken}, folder / "pytorch_model.bin")
        return folder / "pytorch_model.bin"
    elif name == "cut pickle":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:900])
        return folder / "pytorch_model.bin"
    elif name == "not a state":
        weights.unlink()
        torch.save([torch.ones(2)], folder / "pytorch_model.bin")
        return folder / "pytorch_model.bin"
    elif name == "no weights":
        weights.unlink()
        return folder
    elif name == "adapter":
        weights.unlink()
        (folder / "config.json").unlink()
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y"}')
        return folder
    elif name == "adapter beside":
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y"}')
        return folder
    elif name == "no config":
        (folder / "config.json").unlink()
        return folder
    elif name == "config of nothing":
        (folder / "config.json").write_text("{}")
        return folder
    elif name == "config cut":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text[: len(text) // 2])
        return folder / "config.json"
    elif name == "config of text":
        (folder / "config.json").write_text((folder / "config.json").read_text().replace(": 32,", ': "wide",', 1))
        return folder
    elif name == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
        return folder
    elif name == "tokenizer cut":
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:300])
        return folder
    elif name == "larger tokenizer":
        told = json.loads((folder / "tokenizer.json").read_text())
        told["added_tokens"].append({**told["added_tokens"][0], "id": 5000, "content": "<more>"})
        (folder / "tokenizer.json").write_text(json.dumps(told))
        return folder
    return weights


BROKEN = (
    "empty,cut,cut header,longer,noise,pointer,page,deep header,program,cut pickle,not a state,no weights,adapter,adapter beside,"
    "no config,config of nothing,config cut,config of text,no tokenizer,tokenizer cut,larger tokenizer"
).split(",")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_get_a_sentence(tiny: Tiny, tmp_path: Path, name: str) -> None:
    shutil.copytree(tiny("qwen2"), tmp_path / "m")
    file = broken(tmp_path / "m", name)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "m")
    assert str(file) in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.999])
def test_a_file_cut_anywhere(tiny: Tiny, tmp_path: Path, where: float) -> None:
    shutil.copytree(tiny("gpt2"), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(where * file.stat().st_size)])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        read(tmp_path / "m")


def sharded(tiny: Tiny, folder: Path) -> Path:
    loaded = read(tiny("qwen2"))
    loaded.model.save_pretrained(folder, max_shard_size="40KB")
    loaded.tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_shards(tiny: Tiny, tmp_path: Path) -> None:
    folder = sharded(tiny, tmp_path / "m")
    assert digest(read(folder).model) == digest(read(tiny("qwen2")).model)
    second = sorted(folder.glob("model-*.safetensors"))[1]
    state = load_file(second)
    name = sorted(state)[0]
    save_file({n: t for n, t in state.items() if n != name}, second, {"format": "pt"})
    with pytest.raises(UserError, match=f"says that {name} is in {second.name}, which does not hold it"):
        read(folder)
    save_file({**state, "lm_head.weight": torch.ones(1)}, second, {"format": "pt"})
    with pytest.raises(UserError, match="shards of different files"):
        read(folder)
    second.unlink()
    with pytest.raises(UserError, match=f"lacks 1 of .* files that model.safetensors.index.json names: {second.name}"):
        read(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="is not an index of shards"):
        read(folder)


def test_values_that_a_dtype_cannot_hold(tiny: Tiny, tmp_path: Path) -> None:
    def large(state: State) -> None:
        state["model.norm.weight"] *= 1e6

    folder = str(changed(tiny("llama"), tmp_path / "m", large))
    assert load(folder, "bfloat16").kind == "causal"
    with pytest.raises(UserError, match="float16 cannot hold them.*model.norm.weight"):
        load(folder, "float16")


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"weight": torch.zeros(2, 32)}, "holds weight .2, 32. F32; expected weight .2, 32. and bias"),
        ({"weight": torch.zeros(2, 8), "bias": torch.zeros(2)}, r"expected weight .2, 32."),
        ({"weight": torch.zeros(2, 32, dtype=torch.int32), "bias": torch.zeros(2)}, "I32"),
        ({"weight": torch.full((2, 32), float("nan")), "bias": torch.zeros(2)}, "NaN"),
        ({"weight": torch.zeros(3, 32), "bias": torch.zeros(3)}, "has 3 classes, the task has 2"),
    ],
)
def test_heads_that_blockzo_did_not_write(tiny: Tiny, tmp_path: Path, state: State, told: str) -> None:
    shutil.copytree(tiny("encoder"), tmp_path / "m")
    save_file(state, tmp_path / "m" / "head.safetensors")
    with pytest.raises(UserError, match=told):
        read(tmp_path / "m")


def without_head(state: State) -> State:
    return {n: t for n, t in state.items() if not n.startswith(("lm_head.", "cls."))}


@pytest.mark.parametrize("name", ["mpnet", "roberta", "bert"])
def test_a_masked_model_whose_file_holds_the_encoder_alone(tiny: Tiny, tmp_path: Path, name: str) -> None:
    """What sentence-transformers saves: config.json names the masked model, the file has no head."""
    whole = read(tiny(name), "mean")
    bare = read(changed(tiny(name), tmp_path / "bare", without_head))
    assert (bare.kind, digest(bare.model)) == ("head", digest(whole.model))
    assert any("its encoder alone" in note for note in bare.notes)
    with pytest.raises(UserError, match="missing from the file"):
        read(tmp_path / "bare", "words")


@pytest.mark.parametrize("name", ["mpnet", "roberta", "bert"])
def test_part_of_a_head_is_a_damaged_file(tiny: Tiny, tmp_path: Path, name: str) -> None:
    state = load_file(tiny(name) / "model.safetensors")
    first, *others = sorted(set(state) - set(without_head(state)))
    assert others
    folder = changed(tiny(name), tmp_path / "m", lambda s: {n: t for n, t in s.items() if n != first})
    with pytest.raises(UserError, match="missing from the file"):
        read(folder)


def test_a_causal_model_without_its_own_head_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing from the file: lm_head.weight"):
        read(changed(tiny("qwen2"), tmp_path / "m", without_head))
