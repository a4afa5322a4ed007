"""The models, from their published configurations with random weights, and the loss that a task puts on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blockzo as bz

WORDS = (100, 200)
"""The two label words of a task: the head makes these two logits and no others, as fine-tuning by prompts does."""
SPREAD = 0.02
Loss = Callable[[nn.Module, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Shape:
    """A transformer by its numbers.

    Attributes:
        name: as tables have it. kind: its class in transformers.
        inner: width between the two halves of the MLP. kv_heads: heads of keys and values.
        gated: the MLP has a third matrix.
        dtype: of the weights.
    """

    name: str
    kind: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int
    dtype: torch.dtype
    gated: bool = False

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def case(self) -> str:
        return f"{self.name} {str(self.dtype)[6:]}"


PAPER = ("roberta-large", "opt-1.3b", "llama-3.2-3b")
SHAPES = {
    "roberta-large": Shape(
        "RoBERTa-large", "roberta", 24, 1024, 4096, 16, 16, vocabulary=50_265, positions=514, dtype=torch.float32
    ),
    "opt-1.3b": Shape(
        "OPT-1.3B", "opt", 24, 2048, 8192, 32, 32, vocabulary=50_272, positions=2048, dtype=torch.bfloat16
    ),
    "llama-3.2-3b": Shape(
        "LLaMA-3.2-3B",
        "llama",
        28,
        3072,
        8192,
        24,
        8,
        vocabulary=128_256,
        positions=131_072,
        dtype=torch.bfloat16,
        gated=True,
    ),
    # baselines are compared on it: backpropagation fits everywhere
    "opt-125m": Shape("OPT-125M", "opt", 12, 768, 3072, 12, 12, vocabulary=50_272, positions=2048, dtype=torch.float32),
    # for tests
    "tiny": Shape("tiny", "llama", 4, 64, 128, 4, 2, vocabulary=512, positions=16_384, dtype=torch.float32, gated=True),
}


def configuration(shape: Shape) -> Any:
    """As the model's own config.json has it; dropout is off where blockzo evaluates."""
    from transformers import LlamaConfig, OPTConfig, RobertaConfig

    common = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "tie_word_embeddings": True,
    }
    if shape.kind == "roberta":
        return RobertaConfig(
            **common,
            intermediate_size=shape.inner,
            max_position_embeddings=shape.positions,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        )
    if shape.kind == "opt":
        return OPTConfig(
            **common,
            ffn_dim=shape.inner,
            max_position_embeddings=shape.positions,
            word_embed_proj_dim=shape.width,
        )
    return LlamaConfig(
        **common,
        intermediate_size=shape.inner,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        max_position_embeddings=shape.positions,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )


def build(shape: Shape, device: str = "cpu") -> nn.Module:
    """The model in evaluation mode, weights made in their own dtype by one pass of signs: no float32 copy, no slow normal."""
    from transformers import LlamaForCausalLM, OPTForCausalLM, RobertaForMaskedLM
    from transformers.initialization import no_init_weights

    made = {"roberta": RobertaForMaskedLM, "opt": OPTForCausalLM, "llama": LlamaForCausalLM}[shape.kind]
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(shape.dtype)
        with torch.device(device), no_init_weights():
            model: nn.Module = made(configuration(shape))
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    if device != "meta":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.fill_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
        bz.perturb_(model, bz.Noise(0), SPREAD)
    return model.eval()


def with_layers(shape: Shape, layers: int) -> Shape:
    return replace(shape, name=f"{shape.name} of {layers} layers", layers=layers)


def batch(shape: Shape, rows: int, tokens: int, device: str = "cpu") -> dict[str, Tensor]:
    """Token ids; on the device "meta", where decoders cannot ask a tensor what their mask is, with the mask and positions."""
    if device != "meta":
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(5, shape.vocabulary - 5, (rows, tokens), generator=generator)
        return {"input_ids": ids, "labels": ids}
    ids = torch.zeros(rows, tokens, dtype=torch.int64, device=device)
    data = {"input_ids": ids, "labels": ids}
    if shape.kind != "roberta":
        data |= {"attention_mask": ids.new_ones(rows, 1, tokens, tokens, dtype=torch.bool), "position_ids": ids}
    return data


def word_loss(model: nn.Module, data: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of two label words at the last position (of a masked model: where its mask would be)."""
    ids = data["input_ids"]
    labels = ids[:, 0] % len(WORDS)
    if hasattr(model, "roberta"):
        hidden = model.roberta(input_ids=ids)[0][:, -1]
        head = model.lm_head
        hidden = head.layer_norm(F.gelu(head.dense(hidden)))
        weight, bias = head.decoder.weight, head.bias
    else:
        given = {name: value for name, value in data.items() if name != "labels"}
        hidden = model.model(**given, use_cache=False)[0][:, -1]
        weight, bias = model.lm_head.weight, None
    words = torch.tensor(WORDS, device=ids.device)
    logits = F.linear(hidden, weight[words], None if bias is None else bias[words])
    return F.cross_entropy(logits.float(), labels)


def language_loss(model: nn.Module, data: dict[str, Tensor]) -> Tensor:
    """The model's own loss, of all positions."""
    return model(**data).loss


LOSSES: dict[str, Loss] = {"words": word_loss, "language": language_loss}
