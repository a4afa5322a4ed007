"""LoRA adapters of PEFT are moved, the base they sit on costs nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import blockzo as bz
from blockzo.ops.backends import choice
from blockzo.optim.executor import PerturbedExecutor
from blockzo.perturb import parameters
from blockzo.perturb.groups import perturbed_losses
from tests.core import zoo

peft = pytest.importorskip("peft")

NOISE = bz.Noise(2, "gaussian")
ADAPTED = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "opt": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "roberta": ["query", "value"],
}


def with_lora(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=ADAPTED[name], fan_in_fan_out=name == "gpt2", **options)
    model = peft.get_peft_model(zoo.make(name), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))  # B begins at 0, which would hide A
    return model


@pytest.mark.parametrize("small", [32, 1 << 14], ids=["large", "small"])
@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_are_moved_and_the_base_is_not(name: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "SMALL", small)
    streams: set[int] = set()
    native = choice.for_tensor(torch.zeros(1))
    for function in ("perturb_", "perturbed_copy", "perturbed_rows", "perturbed_linear"):
        plain = getattr(native, function)

        def noted(*args: Any, plain: Any = plain, function: str = function, **options: Any) -> Any:
            streams.update([t.stream for t in args[0]] if function == "perturb_" else [args[-1]])
            return plain(*args, **options)

        monkeypatch.setattr(native, function, noted)
    model, batch = with_lora(name), zoo.batch()
    adapters = {n for n, p in model.named_parameters() if p.requires_grad}
    assert adapters and all("lora_" in n for n in adapters)
    before = bz.digest(model)
    with bz.perturbed(model, NOISE, [1], [0.05]):
        found = model(**batch).loss
    grouped = perturbed_losses(model, NOISE, [1, 1], [0.05, -0.05], lambda: model(**batch).loss, max_group=2)
    assert streams == {bz.stream_id(n) for n in adapters}
    assert bz.digest(model) == before
    expected = []
    for scale in (0.05, -0.05):
        other = copy.deepcopy(model)
        bz.perturb_(other, NOISE, scale, 1)
        with torch.no_grad():
            expected.append(float(other(**batch).loss))
    assert float(found) == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(grouped, torch.tensor(expected), rtol=1e-5, atol=0)
    assert abs(expected[0] - expected[1]) > 1e-3


@pytest.mark.parametrize("size", [1, 4])
def test_split_trees_of_adapted_models(size: int) -> None:
    model, batch = with_lora("llama"), zoo.batch()
    blocks = bz.Blocks(model, [2])
    found = PerturbedExecutor(blocks, NOISE, [0.05] * 2, size).run(bz.SPZO(1, 2).tree(2), lambda: model(**batch).loss)
    for leaf, (late, sign) in enumerate([(0, 1), (1, 1), (0, -1), (1, -1)]):
        other = copy.deepcopy(model)
        parts = [{n: p for n, p in other.named_parameters() if blocks.layout.get(n) == b} for b in (0, 1)]
        assert all(parts)
        bz.perturb_(parts[0], NOISE, sign * 0.05, 0)
        bz.perturb_(parts[1], NOISE, sign * 0.05, late)
        with torch.no_grad():
            assert found.losses[leaf] == pytest.approx(float(other(**batch).loss), rel=1e-5)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tied": lambda: zoo.make("llama"),
    "transposed, biases": lambda: zoo.make("gpt2"),
    "lora": lambda: with_lora("llama"),
    "dora": lambda: with_lora("llama", use_dora=True),
}
WAYS: dict[str, dict[str, Any]] = {
    "alone": {"max_group": 1},
    "groups": {"method": bz.SPSA(2), "max_group": 4},
    "own directions": {"per_example": True},
    "low rank": {"rank": 1},
}


@pytest.mark.parametrize(
    "way", [name if name == "groups" else pytest.param(name, marks=pytest.mark.slow) for name in WAYS]
)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
def test_moves_below_half_a_last_place(
    dtype: torch.dtype, model: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded they leave every weight, so that no loss differs; in products in float32 they count."""
    monkeypatch.setattr(parameters, "SMALL", 300)
    made, eps = MODELS[model]().to(dtype), 4e-4 if dtype == torch.bfloat16 else 5e-5
    with torch.no_grad():
        for p in made.parameters():
            # frozen ones too, as products are larger for it
            p.copy_(torch.where(p < 0, -1, 1) * (p.abs() + 0.27))
    for moved in ("rounded", "float32"):
        zo = bz.ZO(made, lambda m, b: m(**b).loss, eps=eps, moved=moved, **WAYS[way])
        scalars = [scalar for block in zo.estimate(zoo.batch()).scalars for scalar in block.values()]
        assert any(scalars) is (moved == "float32"), (moved, scalars)
