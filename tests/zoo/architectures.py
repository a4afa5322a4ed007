"""A table of tiny random models: what users bring, each built from its configuration in some milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

VOCABULARY, WIDTH, LAYERS, HEADS = 96, 32, 4, 4
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
EXPERTS = {"output_router_logits": True, "num_experts_per_tok": 2}
OLD = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": HEADS,
}


@dataclass(frozen=True)
class Architecture:
    """A model of transformers by the names of its classes, what its configuration says, and how it is cut and called."""

    model: str
    config: str
    settings: dict[str, Any]
    inputs: str = "tokens"
    """Which batch it takes, see `batches`."""
    layers: str | None = None
    """Name of its list of layers, where it has several."""
    count: int = LAYERS
    """Layers in that list."""
    cuts: tuple[Any, ...] | None = None
    """Where it is cut, if not as all others are."""
    family: str = "decoder"
    changes: dict[str, Any] = field(default_factory=dict)
    """Set on the configuration once it is made."""

    def make(self) -> nn.Module:
        config = getattr(hf, self.config)(**self.settings)
        for name, value in self.changes.items():
            setattr(config, name, value)
        return getattr(hf, self.model)(config)


def decoder(name: str, settings: dict[str, Any] | None = None, **more: Any) -> Architecture:
    options = {key: more.pop(key) for key in tuple(more) if key in Architecture.__dataclass_fields__}
    config = options.pop("config", f"{name}Config")
    model = options.pop("model", f"{name}ForCausalLM")
    return Architecture(model, config, {**(GROUPED if settings is None else settings), **more}, **options)


def encoder(name: str, settings: dict[str, Any] | None = None, head: str = "ForMaskedLM", **more: Any) -> Architecture:
    more.setdefault("family", "encoder")
    return decoder(name, SIZES if settings is None else settings, model=f"{name}{head}", **more)


def both(name: str, settings: dict[str, Any], **more: Any) -> Architecture:
    more.setdefault("family", "encoder-decoder")
    return decoder(name, settings, model=f"{name}ForConditionalGeneration", **more)


def vision(name: str, settings: dict[str, Any], head: str = "ForImageClassification", **more: Any) -> Architecture:
    more.setdefault("family", "vision")
    return decoder(name, settings, model=f"{name}{head}", inputs=more.pop("inputs", "image"), **more)


PIXELS = {"image_size": 16, "patch_size": 4, "num_labels": 3}
TRANSLATION = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
GEMMA3N = {
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "head_dim": 8,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "sliding_window": 4,
    "num_hidden_layers": 6,
}
WAVES = {
    "conv_dim": (16, 16),
    "conv_kernel": (4, 4),
    "conv_stride": (4, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
}

ARCHITECTURES: dict[str, Architecture] = {
    # decoders
    "llama": decoder("Llama"),
    "llama_tied": decoder("Llama", tie_word_embeddings=True),
    "mistral": decoder("Mistral", sliding_window=4),
    "ministral": decoder("Ministral", sliding_window=4, head_dim=8),
    "qwen2": decoder("Qwen2"),
    "qwen3": decoder("Qwen3", head_dim=8),
    "gemma": decoder("Gemma", head_dim=8),
    "gemma2": decoder("Gemma2", head_dim=8, sliding_window=4),
    "gemma3": decoder("Gemma3", config="Gemma3TextConfig", head_dim=8, sliding_window=4),
    "gemma3n": decoder(
        "Gemma3n",
        config="Gemma3nTextConfig",
        **{**GEMMA3N, "intermediate_size": [48] * 6},
        activation_sparsity_pattern=[0.5, 0.0] * 3,
        laurel_rank=4,
        count=6,
    ),
    "gemma4": decoder("Gemma4", config="Gemma4TextConfig", **GEMMA3N, global_head_dim=8, count=6),
    "phi": decoder("Phi", SIZES, partial_rotary_factor=0.5),
    "phi3": decoder("Phi3"),
    "gpt2": decoder("GPT2", OLD, model="GPT2LMHeadModel"),
    "gpt_neo": decoder(
        "GPTNeo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "intermediate_size": 48,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 4,
            "max_position_embeddings": 64,
        },
    ),
    "gpt_neox": decoder("GPTNeoX", SIZES),
    "gptj": decoder("GPTJ", {**OLD, "rotary_dim": 4}),
    "gpt_bigcode": decoder("GPTBigCode", OLD),
    "codegen": decoder("CodeGen", {**OLD, "rotary_dim": 4, "n_ctx": 64}),
    "opt": decoder("OPT", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 24}),
    "bloom": decoder("Bloom", {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}),
    "falcon": decoder("Falcon", {**SIZES, "new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
    "falcon_alibi": decoder("Falcon", {**SIZES, "alibi": True, "multi_query": True, "parallel_attn": False}),
    "mpt": decoder(
        "Mpt", {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": 64}
    ),
    "stablelm": decoder("StableLm", partial_rotary_factor=0.5),
    "cohere": decoder("Cohere", logit_scale=1.0),
    "cohere2": decoder("Cohere2", sliding_window=4, logit_scale=1.0),
    "olmo": decoder("Olmo"),
    "olmo2": decoder("Olmo2"),
    "granite": decoder("Granite"),
    "smollm3": decoder("SmolLM3"),
    "starcoder2": decoder("Starcoder2"),
    "glm4": decoder("Glm4", head_dim=8),
    "exaone4": decoder("Exaone4", sliding_window=4),
    "nemotron": decoder("Nemotron"),
    "mamba": decoder(
        "Mamba",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "state_size": 4,
            "pad_token_id": 0,
        },
    ),
    "mamba2": decoder(
        "Mamba2",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "pad_token_id": 0,
        },
    ),
    "rwkv": decoder(
        "Rwkv",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "attention_hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "context_length": 64,
        },
    ),
    "recurrent_gemma": decoder("RecurrentGemma", head_dim=8, lru_width=WIDTH, attention_window_size=4),
    "jamba": decoder(
        "Jamba",
        use_mamba_kernels=False,
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
        family="mixture",
        **EXPERTS,
    ),
    # mixtures of experts with the loss of their routers
    "mixtral": decoder("Mixtral", num_local_experts=4, family="mixture", router_aux_loss_coef=1.0, **EXPERTS),
    "qwen2_moe": decoder(
        "Qwen2Moe",
        num_experts=4,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
        router_aux_loss_coef=1.0,
        family="mixture",
        **EXPERTS,
    ),
    "qwen3_moe": decoder(
        "Qwen3Moe",
        num_experts=4,
        moe_intermediate_size=24,
        head_dim=8,
        router_aux_loss_coef=1.0,
        family="mixture",
        **EXPERTS,
    ),
    "olmoe": decoder("Olmoe", num_experts=4, router_aux_loss_coef=1.0, family="mixture", **EXPERTS),
    "granite_moe": decoder("GraniteMoe", num_local_experts=4, router_aux_loss_coef=1.0, family="mixture", **EXPERTS),
    "phimoe": decoder("Phimoe", num_local_experts=4, router_aux_loss_coef=1.0, family="mixture", **EXPERTS),
    "gpt_oss": decoder(
        "GptOss",
        num_local_experts=4,
        head_dim=8,
        sliding_window=4,
        router_aux_loss_coef=1.0,
        family="mixture",
        **EXPERTS,
    ),
    "deepseek_v2": decoder(
        "DeepseekV2",
        {**SIZES, **LATENT},
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        first_k_dense_replace=1,
        n_group=2,
        topk_group=1,
        family="mixture",
    ),
    "deepseek_v3": decoder(
        "DeepseekV3",
        {**SIZES, **LATENT},
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        first_k_dense_replace=1,
        n_group=2,
        topk_group=1,
        family="mixture",
    ),
    # encoders
    "bert": encoder("Bert"),
    "roberta": encoder("Roberta"),
    "camembert": encoder("Camembert"),
    "distilbert": encoder(
        "DistilBert",
        {
            "vocab_size": VOCABULARY,
            "dim": WIDTH,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": 48,
            "max_position_embeddings": 64,
        },
    ),
    "albert": encoder("Albert", num_hidden_groups=2, embedding_size=16, cuts=([], "auto", ["head"], [1])),
    "albert_shared": encoder("Albert", embedding_size=16, cuts=([],)),
    "electra": encoder("Electra", embedding_size=16),
    "deberta": encoder("Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=8),
    "deberta_v2": encoder(
        "DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=8, conv_kernel_size=3
    ),
    "mpnet": encoder("MPNet"),
    "xlnet": encoder(
        "XLNet",
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "d_inner": 48},
        head="LMHeadModel",
    ),
    "modernbert": encoder(
        "ModernBert", cls_token_id=1, sep_token_id=2, local_attention=4, global_attn_every_n_layers=2
    ),
    "nystromformer": encoder("Nystromformer", num_landmarks=4, segment_means_seq_len=12, inputs="twelve"),
    "funnel": encoder(
        "Funnel",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "n_head": HEADS,
            "d_head": 8,
            "d_inner": 48,
            "block_sizes": [2, 2],
            "num_decoder_layers": 2,
        },
        cuts=([],),
    ),
    "squeezebert": encoder("SqueezeBert", embedding_size=WIDTH),
    "convbert": encoder("ConvBert", embedding_size=WIDTH, head_ratio=2, conv_kernel_size=3),
    "fnet": encoder("FNet", {**SIZES, "tpu_short_seq_length": 8}, inputs="unmasked"),
    "roformer": encoder("RoFormer", embedding_size=WIDTH),
    "big_bird": encoder("BigBird", attention_type="original_full"),
    "rembert": encoder("RemBert", input_embedding_size=16, output_embedding_size=16),
    "ibert": encoder("IBert"),
    "bert_classifier": encoder("Bert", head="ForSequenceClassification", num_labels=3, inputs="classes"),
    "roberta_classifier": encoder("Roberta", head="ForSequenceClassification", num_labels=3, inputs="classes"),
    "deberta_classifier": encoder(
        "DebertaV2",
        head="ForSequenceClassification",
        num_labels=3,
        inputs="classes",
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        max_relative_positions=8,
    ),
    "llama_classifier": decoder("Llama", model="LlamaForSequenceClassification", num_labels=3, inputs="classes"),
    "bert_tagger": encoder("Bert", head="ForTokenClassification", num_labels=VOCABULARY),
    # encoder-decoders, cut in one of their two lists
    "t5": both(
        "T5",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "decoder_start_token_id": 0,
        },
        layers="decoder.block",
    ),
    "t5_encoder": both(
        "T5",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "decoder_start_token_id": 0,
        },
        layers="encoder.block",
    ),
    "bart": both("Bart", TRANSLATION, layers="model.decoder.layers"),
    "bart_encoder": both("Bart", TRANSLATION, layers="model.encoder.layers"),
    "mbart": both("MBart", TRANSLATION, layers="model.decoder.layers"),
    "pegasus": both("Pegasus", TRANSLATION, layers="model.encoder.layers"),
    "m2m100": both("M2M100", TRANSLATION, layers="model.decoder.layers"),
    "marian": decoder(
        "Marian", TRANSLATION, model="MarianMTModel", layers="model.decoder.layers", family="encoder-decoder"
    ),
    "whisper": both(
        "Whisper",
        {
            **TRANSLATION,
            "num_mel_bins": 8,
            "max_source_positions": 12,
            "max_target_positions": 64,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        layers="model.encoder.layers",
        inputs="mel",
    ),
    # vision
    "vit": vision("ViT", {**SIZES, **PIXELS}),
    "deit": vision("DeiT", {**SIZES, **PIXELS}),
    "beit": vision("Beit", {**SIZES, **PIXELS, "use_relative_position_bias": True}),
    "dinov2": vision("Dinov2", {**SIZES, **PIXELS, "mlp_ratio": 2}),
    "swin": vision(
        "Swin",
        {**PIXELS, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2},
        layers="swin.encoder.layers",
        count=2,
        cuts=([], [1], ["head"]),
    ),
    "convnext": vision(
        "ConvNext",
        {**PIXELS, "num_stages": 2, "hidden_sizes": [16, 32], "depths": [2, 2]},
        layers="convnext.encoder.stages",
        count=2,
        cuts=([], [1], ["head"]),
    ),
    "resnet": vision(
        "ResNet",
        {**PIXELS, "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
        layers="resnet.encoder.stages",
        count=2,
        cuts=([], [1], ["head"]),
    ),
    "clip": Architecture(
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {**SIZES, "projection_dim": 16},
            "vision_config": {**{k: v for k, v in SIZES.items() if "token" not in k}, **PIXELS, "projection_dim": 16},
            "projection_dim": 16,
        },
        inputs="pairs",
        layers="text_model.encoder.layers",
        family="vision",
    ),
    # speech
    "wav2vec2": Architecture(
        "Wav2Vec2ForCTC", "Wav2Vec2Config", {**SIZES, **WAVES, "vocab_size": 12}, inputs="speech", family="speech"
    ),
    "hubert": Architecture(
        "HubertForCTC", "HubertConfig", {**SIZES, **WAVES, "vocab_size": 12}, inputs="speech", family="speech"
    ),
}


def jitter(model: nn.Module, size: float = 0.05) -> nn.Module:
    """Random norms, biases and embeddings, so that a parameter that is not moved is noticed."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(size * torch.randn_like(parameter))
    return model.eval()


def make(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return jitter(ARCHITECTURES[name].make())


def _tokens(rows: int = 4, tokens: int = 10) -> dict[str, Tensor]:
    ids = torch.randint(5, VOCABULARY - 6, (rows, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, tokens - 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


def _without(found: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in found.items() if key != name}


def _floats(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


CLASSES = torch.tensor([0, 1, 2, 0])
BATCHES: dict[str, Callable[[], dict[str, Any]]] = {
    "tokens": _tokens,
    "twelve": lambda: _without(_tokens(tokens=12), "attention_mask"),
    "unmasked": lambda: _without(_tokens(), "attention_mask"),
    "classes": lambda: {**_tokens(), "labels": CLASSES},
    "image": lambda: {"pixel_values": _floats(4, 3, 16, 16), "labels": CLASSES},
    "pairs": lambda: {
        **_without(_tokens(), "labels"),
        "pixel_values": _floats(4, 3, 16, 16),
        "return_loss": True,
    },
    "mel": lambda: {"input_features": _floats(4, 8, 24), "labels": _tokens()["labels"]},
    "speech": lambda: {"input_values": _floats(4, 200), "labels": torch.tensor([[3, 4, 5]] * 4)},
}


def batch(name: str) -> dict[str, Any]:
    return BATCHES[ARCHITECTURES[name].inputs]()
