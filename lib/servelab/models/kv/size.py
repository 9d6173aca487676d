"""How many bytes one token's keys and values take: calculated from a model's config, nothing is loaded.

Every layer keeps a key and a value for each of its key/value heads; grouped heads (fewer of them than query
heads) are why recent models need less. Says nothing about who keeps them, or for how long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
}


@dataclass(frozen=True, slots=True)
class KVSize:
    """What one token stores.

    vectors: 2 (a key and a value), or 1 where both are made from one compressed vector (DeepSeek-V2).
    head_dim: numbers in each vector.
    """

    layers: int
    heads: int  # that keep keys and values
    head_dim: int
    bytes_per_number: int
    vectors: int = 2

    @property
    def bytes_per_token(self) -> int:
        return self.vectors * self.layers * self.heads * self.head_dim * self.bytes_per_number

    @property
    def formula(self) -> str:
        kept = "2 (key and value)" if self.vectors == 2 else "1 (compressed)"
        return (
            f"{kept} × {self.layers} layers × {self.heads} heads × {self.head_dim} numbers "
            f"× {self.bytes_per_number} bytes = {self.bytes_per_token:,} bytes per token"
        )

    @classmethod
    def of(cls, config: Any, dtype: Any = None) -> KVSize:
        """From a transformers config, and a dtype or its name (by default the one that the config names).

        A layer that keeps only a window of tokens is counted as if it kept all: then this is the most.
        """
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        layers = config.num_hidden_layers
        width = _bytes_of(dtype if dtype is not None else getattr(config, "dtype", None))
        if getattr(config, "kv_lora_rank", None):
            return cls(layers, 1, config.kv_lora_rank + config.qk_rope_head_dim, width, vectors=1)
        heads = config.num_attention_heads
        return cls(
            layers,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            width,
        )


def _bytes_of(dtype: Any) -> int:
    name = str(dtype or "float32").removeprefix("torch.")
    if name not in BYTES:
        raise ValueError(f"{name!r} is no dtype that is known here: use one of {', '.join(BYTES)}.")
    return BYTES[name]
