"""A causal language model of the transformers library, running ragged steps.

Brings together the network, its cache, attention and sampling, and answers the engine's questions
(`TokenModel`). A step computes exactly the tokens it is given, whatever their mixture of prompts and
single tokens. Knows nothing about queues, policies or time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from servelab.model import Chunk, Outcome, StepCost
from servelab.models import attention, model_thread
from servelab.models.attention import Row, lay_out
from servelab.models.families import refuse_unsupported
from servelab.models.generation_config import warn_of_other_answers
from servelab.models.kv.blocks import BLOCK_SIZE, Blocks
from servelab.models.kv.cache import KVCache
from servelab.models.kv.paged import PagedCache
from servelab.models.kv.size import KVSize
from servelab.models.kv.slots import SlotCache
from servelab.models.packed_linear import pack_linears
from servelab.models.sampling import Draw, next_tokens
from servelab.models.token_bytes import TokenBytes, own_copy
from servelab.request import InvalidRequest, Prompt, Request

DUMMY_TOKEN = 0


class CausalLM:
    """A TokenModel over a transformers causal LM.

    network: put into eval mode, otherwise left as it is; its own generate() keeps working.
    tokenizer: without one, prompts are token ids. A copy encodes, so nothing that others set on this one
        (truncation, say) changes a prompt; but its chat template may be set at any time.
    slots: most requests at once; each takes memory for `context_length` tokens.
    context_length: most tokens of one request; at most what the network was made for.
    kv_bytes: instead of slots, keep keys and values in pages, in at most so many bytes. Then memory is taken
        as answers grow, in blocks of `block_size` tokens, and prompts that begin alike share them (see
        `memory`).

    In float32 a greedy answer is that of generate(do_sample=False), and draws of one seed are the same,
    whoever runs beside: company moves logits by some 4e-5, and in our tests no two tokens were that close. In
    bfloat16 and float16 a token is the best up to rounding only. Where two are that close, company may decide
    between them, and the answers differ from there on. What else a generation_config has generate() do is
    said when the model is made.

    All computing happens on the process's model thread (see `model_thread`).
    """

    real = True
    cost: StepCost | None = None

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        slots: int = 8,
        context_length: int = 1024,
        kv_bytes: int | None = None,
        block_size: int = BLOCK_SIZE,
        name: str | None = None,
    ) -> None:
        config = network.config
        refuse_unsupported(config)
        network.train(False)
        network.set_attn_implementation(attention.NAME)
        self.network = network
        self.tokenizer = tokenizer
        self.vocabulary = config.vocab_size
        self.stop_token_ids = _stop_token_ids(network, tokenizer)
        kind = f"{network.dtype}, {network.device.type}".removeprefix("torch.")
        self.name = f"{name or Path(config.name_or_path or '').name or config.model_type}, {kind}"
        warn_of_other_answers(network.generation_config, self.name)
        self._own_tokenizer = own_copy(tokenizer) if tokenizer is not None else None
        self._token_bytes = TokenBytes(self._own_tokenizer) if self._own_tokenizer is not None else None
        self._no_mask = torch.empty(1, 1, 1, 1)  # four dimensions: "made already", so the network makes none
        self.kv_size = KVSize.of(config, network.dtype)
        context_length = min(context_length, config.max_position_embeddings)
        self.memory: Blocks | None = None
        kept_as = (context_length, network.dtype, network.device)
        if kv_bytes is None:
            self.cache: KVCache = model_thread.call(SlotCache, self.kv_size, slots, *kept_as)
        else:
            pages = model_thread.call(PagedCache, self.kv_size, kv_bytes, block_size, *kept_as)
            self.cache, self.memory = pages, pages.blocks
        self.slots, self.context_length = self.cache.slots, self.cache.context_length

    @classmethod
    def load(
        cls,
        name_or_folder: str | Path | None = None,
        *,
        slots: int = 8,
        context_length: int = 1024,
        kv_bytes: int | None = None,
        block_size: int = BLOCK_SIZE,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        packed: bool = True,
        progress: bool = True,
    ) -> CausalLM:
        """Load a model from a local folder or the Hugging Face hub; None loads SmolLM2-135M-Instruct.

        device: None takes a CUDA device when there is one, else the CPU.
        packed: on a CPU, rearrange the weights for its matrix kernel (see `packed_linear`): twice as fast.
        """
        if name_or_folder is None:
            from servelab.models import smollm2

            name_or_folder = smollm2.folder()
        network, tokenizer = model_thread.call(_load, name_or_folder, device, dtype, progress)
        if packed:
            model_thread.call(pack_linears, network)
        name = Path(name_or_folder).name
        return cls(
            network,
            tokenizer,
            slots=slots,
            context_length=context_length,
            kv_bytes=kv_bytes,
            block_size=block_size,
            name=name,
        )

    # -- text --------------------------------------------------------------------------

    def encode(self, prompt: Prompt) -> list[int]:
        """Prompt to token ids. With a chat template, a text is one user message; ids stay as they are."""
        if not prompt:
            return []
        if not isinstance(prompt, str) and isinstance(prompt[0], int):
            return self._known([int(cast(int, token_id)) for token_id in prompt])
        if self.tokenizer is None or self._own_tokenizer is None:
            raise InvalidRequest(f"{self.name} has no tokenizer: give the prompt as a list of token ids.")
        if self.tokenizer.chat_template is None:
            if not isinstance(prompt, str):
                raise InvalidRequest(f"{self.name} has no chat template: give the prompt as one text.")
            return list(self._own_tokenizer(prompt)["input_ids"])
        messages: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        template: Any = self.tokenizer.apply_chat_template
        text = template(messages, add_generation_prompt=True, tokenize=False)
        return list(self._own_tokenizer(text, add_special_tokens=False)["input_ids"])

    def _known(self, token_ids: list[int]) -> list[int]:
        for token_id in token_ids:
            if not 0 <= token_id < self.vocabulary:
                known = f"{self.name} knows 0 to {self.vocabulary - 1}"
                raise InvalidRequest(f"There is no token {token_id}: {known}.")
        return token_ids

    def piece(self, token_id: int) -> bytes:
        """The bytes a token adds to the text; without a tokenizer, its number."""
        return self._token_bytes(token_id) if self._token_bytes is not None else f" {token_id}".encode()

    # -- steps -------------------------------------------------------------------------

    def run(self, chunks: Sequence[Chunk], paid: int) -> list[Outcome]:
        """Compute one step on the model thread, and wait for it. See `TokenModel.run`.

        What is wrong with one chunk (no free slot, positions beyond the context, logits that are not
        numbers) is that request's outcome. A step that raises leaves wiped slots behind.
        """
        return model_thread.call(self._run, chunks, paid)

    def release(self, request: Request) -> None:
        """Give the request's slot back, after whatever runs now. Does not wait."""
        model_thread.submit(self.cache.give_back, request)

    def _run(self, chunks: Sequence[Chunk], paid: int) -> list[Outcome]:
        places = [self._place(chunk) for chunk in chunks]
        outcomes: list[Outcome] = [place if isinstance(place, Exception) else None for place in places]
        rows = {number: place for number, place in enumerate(places) if isinstance(place, Row)}
        sampled = [number for number in rows if chunks[number].samples]
        surplus = paid - sum(len(chunk.token_ids) for chunk in chunks)
        try:
            with torch.inference_mode():
                logits = self._forward(rows, self._dummies(surplus), sampled)
                tokens = next_tokens(logits, [_draw(chunks[number]) for number in sampled])
        except BaseException:
            for row in rows.values():
                self.cache.wipe(row.place)
            raise
        for number, token in zip(sampled, tokens, strict=True):
            outcomes[number] = token
        return outcomes

    def _place(self, chunk: Chunk) -> Row | Exception:
        """Where the chunk's tokens go, or what is wrong with this chunk alone."""
        end = chunk.start + len(chunk.token_ids)
        if end > self.context_length:
            return ValueError(f"The context holds {self.context_length} tokens; this request needs {end}.")
        if chunk.start > self.cache.stored(chunk.request):
            return ValueError(f"The tokens before position {chunk.start} are not stored: start again at 0.")
        try:
            self._known(chunk.token_ids)
            place = self.cache.take(chunk.request, end)
        except (InvalidRequest, RuntimeError) as problem:
            return problem
        return Row(place, chunk.start, chunk.token_ids)

    def _dummies(self, surplus: int) -> list[Row]:
        """Rows in the scratch place: as many tokens as are paid for and of no use."""
        most = self.cache.scratch_length
        lengths = [min(most, surplus - start) for start in range(0, surplus, most)]
        return [Row(self.cache.scratch, 0, [DUMMY_TOKEN] * length) for length in lengths]

    def _forward(self, rows: dict[int, Row], dummies: list[Row], sampled: Sequence[int]) -> Tensor:
        """Logits (sampled, vocabulary) of the last token of each sampled row."""
        if not rows and not dummies:
            return torch.empty(0, self.vocabulary)
        step = lay_out([*rows.values(), *dummies], self.cache)
        last_tokens = dict(zip(rows, step.last_tokens, strict=False))
        read = [last_tokens[number] for number in sampled]
        output: Any = self.network(
            input_ids=step.token_ids,
            position_ids=step.positions,
            attention_mask=self._no_mask,
            use_cache=False,
            # The vocabulary is large: compute logits for those tokens only that somebody samples.
            logits_to_keep=torch.tensor(read, dtype=torch.long, device=self.network.device),
            ragged_step=step,  # passed on, layer by layer, to `ragged_attention`
        )
        return cast(Tensor, output.logits[0])


def _draw(chunk: Chunk) -> Draw:
    known = chunk.request.token_ids(0, chunk.start + len(chunk.token_ids))
    return Draw(chunk.request.params, known)


def _stop_token_ids(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Every token that any of them calls an end: chat models often name two."""
    found: set[int] = set()
    for source in (network.generation_config, network.config, tokenizer):
        named = getattr(source, "eos_token_id", None)
        found.update([named] if isinstance(named, int) else named or ())
    return frozenset(found)


def _load(
    source: str | Path, device: str | torch.device | None, dtype: torch.dtype, progress: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with _progress_bars(progress):
        network: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(source)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return network.to(place), tokenizer


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """transformers' own progress bars, switched on or off for a while."""
    bars: Any = transformers.utils.logging
    before = bars.is_progress_bar_enabled()
    switch = {True: bars.enable_progress_bar, False: bars.disable_progress_bar}
    switch[shown]()
    try:
        yield
    finally:
        switch[before]()
