"""One-shot models of the benchmark and the lessons on batching, and what is put into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from servelab.bench.batching import WEIGHTS

Model = Callable[[Tensor], Tensor]

PIXELS, PATCH, CLASSES, WORDS = 32, 8, 1000, 16
MOST = 32  # items in a batch


def image_model(pixels: int = PIXELS) -> tuple[Model, list[Tensor]]:
    """A ViT of the size called tiny (5.6 million weights, random), for pictures of 32 x 32 in 16 patches."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3}
    sizes["num_labels"] = CLASSES
    network = ViTForImageClassification(ViTConfig(image_size=pixels, patch_size=PATCH, **sizes))
    network.train(False)
    return lambda batch: network(batch).logits, list(torch.randn(MOST, 3, pixels, pixels))


def sentence_model() -> tuple[Model, list[Tensor]]:
    """all-MiniLM-L6-v2 (22.7 million weights, real): the mean of what it makes of the words, of length 1."""
    from transformers import AutoModel, AutoTokenizer

    spec = find_spec(WEIGHTS)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    network = AutoModel.from_pretrained(folder, dtype=torch.float32)
    network.train(False)
    tokens = AutoTokenizer.from_pretrained(folder)
    texts = [
        f"Request number {number}: how does one model serve many users at once?" for number in range(MOST)
    ]
    found = tokens(texts, padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt")
    assert bool(found["attention_mask"].all())  # all of one length: no mask

    def embed(batch: Tensor) -> Tensor:
        return torch.nn.functional.normalize(network(batch).last_hidden_state.mean(dim=1))

    return embed, list(found["input_ids"])


def picture(number: int) -> Tensor:
    """One picture of as many as one likes: always the same for a number."""
    return torch.randn(3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(number))


class Numbers(IterableDataset[int]):
    """0, 1, 2, 3 … without end."""

    def __iter__(self) -> Iterator[int]:
        return count()
