"""Which models can run in ragged steps, and why others cannot.

A ragged step replaces attention, so it is right only for models whose attention is softmax of query
times key over all earlier tokens, and nothing else. What a model has beside that is refused by name.
Knows configurations, not tensors.
"""

from __future__ import annotations

from transformers import PretrainedConfig

SUPPORTED = ("gpt2", "llama", "qwen2", "qwen3")  # held against generate() by the tests


class UnsupportedModel(ValueError):
    """This model needs what ragged steps do not have; the message names it."""


def refuse_unsupported(config: PretrainedConfig) -> None:
    """Raise UnsupportedModel, naming the feature, unless the model's attention is plain."""
    family = config.model_type
    feature = _special_feature(config)
    if feature is None and family in SUPPORTED:
        return
    reason = feature or "attention that was never compared with generate()"
    raise UnsupportedModel(
        f"This {family} model has {reason}, which servelab does not compute: "
        f"choose a model of one of these families without it: {', '.join(SUPPORTED)} (SmolLM2 is a llama)."
    )


def _special_feature(config: PretrainedConfig) -> str | None:
    """What makes this model's attention, or its cache, different."""

    def has(*names: str) -> bool:
        return any(bool(getattr(config, name, None)) for name in names)

    if getattr(config, "is_heterogeneous", False):  # first: such a config refuses to be asked for one value
        return "layers of different shapes (per_layer_config)"
    layers = set(getattr(config, "layer_types", None) or ())
    rope = getattr(config, "rope_parameters", None) or {}
    if config.is_encoder_decoder or has("add_cross_attention"):
        return "an encoder and cross attention"
    if not getattr(config, "is_causal", True):
        return "attention to later tokens (is_causal is off)"
    if has("vision_config", "audio_config"):
        return "images or sound as input"
    if has("state_size", "ssm_cfg", "mamba_d_state", "linear_num_key_heads") or layers & {
        "linear_attention", "mamba", "recurrent", "conv"
    }:  # fmt: skip
        return "linear attention or a recurrent state (as in Mamba)"
    if has("kv_lora_rank"):
        return "compressed keys and values (multi-head latent attention)"
    if has("attn_logit_softcapping", "final_logit_softcapping"):
        return "a soft cap on attention or logits"
    if has("alibi") or config.model_type in ("bloom", "mpt"):
        return "position biases (ALiBi)"
    if config.model_type == "gpt_oss":
        return "attention sinks"
    if layers & {"sliding_attention", "chunked_attention"} or has("sliding_window", "attention_chunk_size"):
        return "a sliding window"
    if rope.get("rope_type") in ("dynamic", "longrope"):
        # Its frequencies follow the longest request of the step: one user would change another's answer.
        return f"rotary positions that change with the length ({rope['rope_type']!r})"
    return None
