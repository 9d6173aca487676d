"""Turn a GGUF file into a folder that transformers loads in seconds.

Reading GGUF means unpacking 4-bit blocks one by one, which takes ten times as long as reading
the result back. Knows nothing about where files come from or where they are kept.

Runs as a process of its own (`python -m servelab.models.gguf SOURCE TARGET`): torch's threads
and the gigabyte it needs end with it, and so does the damage when the system runs out of memory.
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(source: Path, target: Path) -> None:
    """Write model, configuration, tokenizer and chat template of `source` into the folder `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)

    # A model read from GGUF refuses to be saved, because its configuration still calls it quantized.
    # The weights are plain float32 by now, so a model with a plain configuration takes them over.
    settings = model.config.to_dict()
    del settings["quantization_config"]
    plain = type(model).from_pretrained(
        None, config=type(model.config).from_dict(settings), state_dict=model.state_dict()
    )
    tokenizer.model_max_length = plain.config.max_position_embeddings

    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main(arguments: list[str]) -> int:
    source, target = map(Path, arguments)
    try:
        convert(source, target)
    except Exception as problem:  # whatever it is, the caller needs one line of it and no traceback
        print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
