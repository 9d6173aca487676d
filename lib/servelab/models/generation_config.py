"""What a model's generation_config has generate() do, and a request does not.

A request says itself how its tokens are chosen (`SamplingParams`), so it means the same with every model.
Of generation_config only the tokens that end an answer are taken over. What is set there beside may give
generate() another greedy answer: that is said when the model is made, in a sentence. Settings for drawing
(do_sample, temperature, top_k …) and lengths are no news: requests have their own. Knows no networks.
"""

from __future__ import annotations

import warnings

from transformers import GenerationConfig

# Whatever can change a greedy answer, and the values, beside None, at which it does not.
OFF: dict[str, tuple[object, ...]] = {
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "guidance_scale": (1,),
    "token_healing": (False,),
    "cache_implementation": ("dynamic", "static", "offloaded", "offloaded_static", "hybrid"),
    **dict.fromkeys(
        ("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
         "forced_eos_token_id", "exponential_decay_length_penalty", "watermarking_config", "stop_strings",
         "penalty_alpha", "dola_layers", "constraints", "force_words_ids", "speculation_type"),
        ([],),
    ),
}  # fmt: skip
# What a request can ask for as well, and how.
OURS = {"repetition_penalty": "repetition_penalty={!r}", "stop_strings": "stop={!r}"}


def other_answers(config: GenerationConfig | None) -> dict[str, object]:
    """The settings by which generate() may answer otherwise than a request that does not sample."""
    found = {name: getattr(config, name, None) for name in OFF}
    return {name: value for name, value in found.items() if value not in (None, *OFF[name])}


def warn_of_other_answers(config: GenerationConfig | None, model: str) -> None:
    """One sentence, if there is anything to say."""
    found = other_answers(config)
    if not found:
        return
    settings = ", ".join(f"{name}={value!r}" for name, value in found.items())
    ours = ", ".join(form.format(_texts(found[name])) for name, form in OURS.items() if name in found)
    ask = f"ask for SamplingParams({ours}) where you want it" if ours else "expect other text"
    warnings.warn(
        f"The generation_config of {model} sets {settings}: "
        f"generate() follows it and requests do not, so {ask}.",
        stacklevel=3,
    )


def _texts(value: object) -> object:
    """As `SamplingParams.stop` wants them; anything else as it is."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
