"""Tiny random-weight models of the architectures that users fine-tune."""

from __future__ import annotations

import torch
import transformers as hf
from torch import Tensor, nn

SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
WIDE = {"intermediate_size": 48, "max_position_embeddings": 64}


def opt() -> nn.Module:
    return hf.OPTForCausalLM(hf.OPTConfig(**SMALL, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=24))


def llama() -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, **WIDE, num_key_value_heads=2, tie_word_embeddings=True))


def qwen2() -> nn.Module:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**SMALL, **WIDE, num_key_value_heads=2))


def gpt2() -> nn.Module:
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=4, n_head=4))


def neox() -> nn.Module:
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SMALL, **WIDE))


def bloom() -> nn.Module:
    return hf.BloomForCausalLM(hf.BloomConfig(vocab_size=96, hidden_size=32, n_layer=4, n_head=4))


def gemma2() -> nn.Module:
    return hf.Gemma2ForCausalLM(hf.Gemma2Config(**SMALL, **WIDE, num_key_value_heads=2, head_dim=8))


def roberta() -> nn.Module:
    return hf.RobertaForMaskedLM(hf.RobertaConfig(**SMALL, **WIDE))


def bert() -> nn.Module:
    return hf.BertForMaskedLM(hf.BertConfig(**SMALL, **WIDE))


def mpnet() -> nn.Module:
    return hf.MPNetForMaskedLM(hf.MPNetConfig(**SMALL, **WIDE))


def distilbert() -> nn.Module:
    return hf.DistilBertForMaskedLM(
        hf.DistilBertConfig(vocab_size=96, dim=32, n_layers=4, n_heads=4, hidden_dim=48, max_position_embeddings=64)
    )


def modernbert() -> nn.Module:
    return hf.ModernBertForMaskedLM(
        hf.ModernBertConfig(
            **SMALL, **WIDE, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
        )
    )


HUGGING_FACE = {
    f.__name__: f for f in (opt, llama, qwen2, gpt2, neox, bloom, gemma2, roberta, bert, mpnet, distilbert, modernbert)
}


def make(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = HUGGING_FACE[name]()
    # random norms, biases and embeddings, so that a parameter that is not moved is noticed
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def batch(rows: int = 3, tokens: int = 11, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 90, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, tokens - 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


class Residual(nn.Module):
    """A layer that returns a tuple and works on its input in place, as older model code does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, width)

    def forward(self, hidden: Tensor, scale: float = 1.0) -> tuple[Tensor, None]:
        hidden += scale * torch.tanh(self.up(hidden))
        return hidden, None


class TupleModel(nn.Module):
    def __init__(self, width: int = 8, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.layers = nn.ModuleList(Residual(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden, _ = layer(hidden, scale=0.5)
        return self.head(self.norm(hidden))


def tuple_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
