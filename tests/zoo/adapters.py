"""Kinds of PEFT adapters on a tiny decoder and a tiny encoder."""

from __future__ import annotations

from typing import Any

import peft
import torch
from torch import nn

from tests.zoo import architectures

BASES = {
    "llama": ("CAUSAL_LM", ["q_proj", "v_proj"], ["down_proj"], "lm_head", "input_layernorm"),
    "bert_classifier": ("SEQ_CLS", ["query", "value"], ["output.dense"], "classifier", "LayerNorm"),
}
"""Task, attention layers, feed-forward layers, head and norms, by the names of their modules."""

KINDS = (
    "lora",
    "rslora",
    "dora",
    "lora_head",
    "lora_bias",
    "pissa",
    "adalora",
    "loha",
    "lokr",
    "ia3",
    "oft",
    "boft",
    "hra",
    "vera",
    "fourier",
    "norms",
    "prefix",
    "prompt",
    "p_tuning",
)


def config(kind: str, base: str) -> peft.PeftConfig:
    task, attention, feed_forward, head, norms = BASES[base]
    common: dict[str, Any] = {"task_type": task, "target_modules": attention}
    low: dict[str, Any] = {**common, "r": 4, "lora_alpha": 8}
    made: dict[str, Any] = {
        "lora": lambda: peft.LoraConfig(**low),
        "rslora": lambda: peft.LoraConfig(**low, use_rslora=True),
        "dora": lambda: peft.LoraConfig(**low, use_dora=True),
        "lora_head": lambda: peft.LoraConfig(**low, modules_to_save=[head]),
        "lora_bias": lambda: peft.LoraConfig(**low, bias="all"),
        "pissa": lambda: peft.LoraConfig(**low, init_lora_weights="pissa"),
        "adalora": lambda: peft.AdaLoraConfig(**common, init_r=4, target_r=2, total_step=10),
        "loha": lambda: peft.LoHaConfig(**common, r=4, alpha=8),
        "lokr": lambda: peft.LoKrConfig(**common, r=4, alpha=8),
        "ia3": lambda: peft.IA3Config(
            task_type=task, target_modules=attention + feed_forward, feedforward_modules=feed_forward
        ),
        "oft": lambda: peft.OFTConfig(**common, oft_block_size=8),
        "boft": lambda: peft.BOFTConfig(**common, boft_block_size=8),
        "hra": lambda: peft.HRAConfig(**common, r=4),
        "vera": lambda: peft.VeraConfig(**common, r=4),
        "fourier": lambda: peft.FourierFTConfig(**common, n_frequency=50),
        "norms": lambda: peft.LNTuningConfig(task_type=task, target_modules=[norms]),
        "prefix": lambda: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=3),
        "prompt": lambda: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=3),
        "p_tuning": lambda: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=3, encoder_hidden_size=16),
    }
    return made[kind]()


def make(kind: str, base: str, seed: int = 0) -> nn.Module:
    """Adapters jittered too: many begin at zero, which would hide the other half of them."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(architectures.make(base), config(kind, base)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
