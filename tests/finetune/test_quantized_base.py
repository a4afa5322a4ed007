"""Frozen bases in few bits under LoRA or trained norms: one digest for equal weights, exact replays, plain models at the end."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import blockzo as bz
from blockzo.finetune import Settings, finetune, replay
from blockzo.finetune.errors import UserError
from blockzo.finetune.models.dtypes import QUANTIZED
from blockzo.finetune.models.loading import Loaded, load
from blockzo.finetune.models.lora import merged
from blockzo.journal.file import JournalError
from blockzo.perturb import PerturbedForward
from blockzo.perturb.groups import perturbed_losses
from blockzo.perturb.quantized_linear import QuantizedLinear
from blockzo.simulate import Federation, simulate

Tiny = Callable[[str], Path]
PACKAGES = {"bnb": "bitsandbytes", "torchao": "torchao"}
HERE = [
    kind
    for kind in QUANTIZED
    if "-" not in kind or importlib.util.find_spec(PACKAGES[kind.partition("-")[0]]) is not None
]
"""Those whose package is installed: an optional one must not let the run fail."""
PEFT = "lora:r=2,targets=q_proj+down_proj"
CLOSE = {"int8": 0.02, "int4": 0.3, "bnb-int8": 0.03, "bnb-nf4": 0.3, "torchao-int8": 0.02, "torchao-int4": 0.3}
"""How far a weight may be from the plain one, relative to its largest."""
IDS = torch.arange(5, 17).unsqueeze(0)


@pytest.fixture(scope="module")
def wide(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 64 and 128 weights, as the blocks of NF4 are."""
    import transformers

    folder = tmp_path_factory.mktemp("wide")
    config = transformers.AutoConfig.from_pretrained(tiny("llama"))
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny("llama")).save_pretrained(folder)
    return folder


@pytest.fixture
def answers(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "answers.jsonl"
    rows = [{"user": f"u{i % 4}", "prompt": f"story {i} is", "completion": " very good"} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"task": "sft", "train": str(path), "holdout": 4, "batch": 3, "lr": "1e-1", "eps": "1e-2"}


def held(folder: Path, kind: str, **more: Any) -> Loaded:
    return load(str(folder), "float32", quantize=kind, **{"peft": PEFT, **more})


@pytest.mark.parametrize("kind", HERE)
def test_a_base_has_one_digest_and_is_close_to_the_plain_one(kind: str, wide: Path) -> None:
    one = held(wide, kind)
    digest = bz.digest(one.model)
    assert digest == bz.digest(held(wide, kind).model) != bz.digest(held(wide, kind, seed=1).model)
    assert digest != bz.digest(load(str(wide), "float32", peft=PEFT).model)
    with torch.no_grad():
        one.model(IDS)
    # forwards in evaluation mode leave it
    assert bz.digest(one.model) == digest
    plain = load(str(wide), "float32").model.state_dict()
    found = merged(one.model)
    assert found.keys() == plain.keys()
    far = {name: float((found[name] - t).abs().max() / t.abs().max()) for name, t in plain.items()}
    assert max(far.values()) < CLOSE[kind]
    changed = {name for name in plain if far[name]}
    # B is 0 at first, so what changed is quantised: all linear layers but the output
    assert len(changed) == 4 * 7 and all("_proj" in name for name in changed)


@pytest.mark.parametrize("bits", [8, 4])
def test_our_own_layers_run_in_groups(bits: int) -> None:
    """With the bits of one after the other: rows do not know of each other."""
    torch.manual_seed(0)
    layer = QuantizedLinear.from_linear(torch.nn.Linear(65, 30), bits)
    x = torch.randn(4, 3, 65)
    with torch.no_grad():
        together = torch.vmap(layer, in_dims=1, out_dims=1)(x)
        assert torch.equal(together, layer(x))
        plain = torch.nn.functional.linear(x, layer.weight.dequantize(), layer.bias)
    torch.testing.assert_close(together, plain, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), PerturbedForward() as counted:
        layer(x)
    assert counted.flops == 2 * 4 * 3 * 65 * 30


@pytest.mark.parametrize("kind", HERE)
def test_adapters_on_it_are_moved_as_in_copies(kind: str, wide: Path) -> None:
    noise, losses = bz.Noise(2), []
    model = held(wide, kind).model

    def loss() -> torch.Tensor:
        found: torch.Tensor = model(input_ids=IDS, labels=IDS).loss
        return found

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    before = bz.digest(model)
    grouped = perturbed_losses(model, noise, [1, 1], [0.05, -0.05], loss, max_group=2)
    assert bz.digest(model) == before
    for scale in (0.05, -0.05):
        other = held(wide, kind).model
        other.load_state_dict({n: p for n, p in model.state_dict().items() if ".lora_" in n}, strict=False)
        bz.perturb_(other, noise, scale, 1)
        with torch.no_grad():
            losses.append(float(other(input_ids=IDS, labels=IDS).loss))
    # bitsandbytes rounds activations to 8 bits
    torch.testing.assert_close(grouped, torch.tensor(losses), rtol=1e-3 if kind == "bnb-int8" else 1e-5, atol=0)
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("kind", HERE)
def test_a_run_of_spzo_on_it_is_replayed_and_leaves_a_plain_model(
    kind: str, wide: Path, answers: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    told = Settings(str(wide), **answers, steps=3, peft=PEFT, quantize=kind, method="spzo", inner=2)
    result = finetune(told, tmp_path / "out")
    again = replay(told.model, tmp_path / "out" / "journal.bz", tmp_path / "again")
    assert again["verified"] and again["digest"] == result["final_digest"] != result["base_digest"]
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, two = load_file(tmp_path / "out" / "model" / file), load_file(tmp_path / "again" / file)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").eval()
    assert not any(isinstance(module, QuantizedLinear) for module in plain.modules())
    with pytest.raises(JournalError, match="is not the model this journal begins at"):
        replay(str(tmp_path / "again"), tmp_path / "out" / "journal.bz", tmp_path / "no")


def test_spzo_learns_on_lora_and_on_lora_over_four_bits(wide: Path, answers: dict[str, Any], tmp_path: Path) -> None:
    """The seed paper's appendix trains both; here a small model, whose held-out loss falls on either base."""
    for name, base in (("lora", {}), ("qlora", {"quantize": "int4"})):
        more = {"lr": "3e-1", "steps": 60, "inner": 4, "method": "spzo", "eval_every": 60}
        result = finetune(Settings(str(wide), **{**answers, **more}, peft="lora:r=4", **base), tmp_path / name)
        assert result["after"]["loss"] < result["before"]["loss"] - 0.1, name


@pytest.mark.parametrize("kind", HERE)
def test_norms_are_trained_over_it_in_rounds(kind: str, wide: Path, answers: dict[str, Any], tmp_path: Path) -> None:
    told = Settings(str(wide), **answers, steps=2, trainable="*norm*", quantize=kind)
    result = simulate(told, Federation(partition="column", column="user"), tmp_path / "run")
    again = replay(told.model, tmp_path / "run" / "journal.bz", tmp_path / "again")
    assert again["digest"] == result["final_digest"] and result["up_to_date"] == 4


def test_what_cannot_be_held_so_is_refused(tiny: Tiny, wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--quantize int4 is for frozen layers; say what is trained beside them"):
        Settings("m", quantize="int4")
    with pytest.raises(UserError, match="--quantize is 'int3'; expected one of int8, int4, bnb-int8"):
        Settings("m", quantize="int3", peft="lora")
    with pytest.raises(UserError, match="with --quantize take --peft lora"):
        Settings("m", quantize="int8", peft="dora")
    with pytest.raises(UserError, match="has no frozen linear layers beside its output"):
        load(str(tiny("gpt2")), "float32", trainable="*ln*", quantize="int8")
    if "bnb-nf4" in HERE:
        with pytest.raises(UserError, match="cannot hold .* rows of 32 weights are no multiple of 64"):
            held(tiny("llama"), "bnb-nf4")
    with pytest.raises(UserError, match="models that have a head of their own"):
        load(str(tiny("encoder")), "float32", "mean", 2, trainable="head*", quantize="int8")
    for package, kind in (("bitsandbytes", "bnb-nf4"), ("torchao", "torchao-int8")):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(UserError, match=f"--quantize {kind} needs {package}: pip install {package}"):
            held(wide, kind)
