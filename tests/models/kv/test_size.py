"""Bytes of one token's keys and values, against what others publish of their models."""

from __future__ import annotations

import pytest
import torch
from transformers import DeepseekV3Config, GPT2Config, LlamaConfig, OPTConfig, Qwen2Config

from servelab.models.kv.size import KVSize

PUBLISHED = [
    # DeepSeek-AI, "Insights into DeepSeek-V3", ISCA 2025, table 1: KV cache per token, bfloat16
    (DeepseekV3Config(), "bfloat16", 70_272),
    (
        Qwen2Config(
            hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
        ),  # Qwen2.5-72B
        "bfloat16",
        327_680,
    ),
    (
        LlamaConfig(
            hidden_size=16384, num_hidden_layers=126, num_attention_heads=128, num_key_value_heads=8
        ),  # Llama-3.1-405B
        "bfloat16",
        516_096,
    ),
    # Kwon et al., vLLM, SOSP 2023, section 3: 800 KB for a token of OPT-13B in float16
    (OPTConfig(hidden_size=5120, num_hidden_layers=40, num_attention_heads=40), "float16", 800 * 1024),
    (GPT2Config(), "float32", 2 * 12 * 12 * 64 * 4),
]


@pytest.mark.parametrize(("config", "dtype", "right"), PUBLISHED, ids=lambda one: str(one)[:12].split(" ")[0])
def test_published_models(config: object, dtype: str, right: int) -> None:
    size = KVSize.of(config, dtype)
    assert size.bytes_per_token == right
    assert f"{right:,} bytes per token" in size.formula


def test_dtypes_by_name_by_object_and_from_the_config() -> None:
    config = LlamaConfig(dtype="bfloat16")
    assert KVSize.of(config).bytes_per_token == KVSize.of(config, torch.float16).bytes_per_token
    assert KVSize.of(config, "float32").bytes_per_token == 2 * KVSize.of(config).bytes_per_token
    with pytest.raises(ValueError, match="'int3' is no dtype"):
        KVSize.of(config, "int3")
