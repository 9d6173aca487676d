"""A request: what a user asks for, and where it stands now.

Knows nothing about models, queues or time sources. The engine writes the fields under
"filled in by the engine"; everybody else only reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from servelab.text import TextStream

Prompt = str | Sequence[int] | Sequence[dict[str, str]]
"""A text, token ids, or chat messages (`{"role": …, "content": …}`)."""


class InvalidRequest(ValueError):
    """The request can never be served as it stands; the message says what to change."""


class RequestState(Enum):
    NEW = "new"  # not accepted (yet); a refused request stays new and may be submitted again
    WAITING = "waiting"  # in the request queue
    RUNNING = "running"  # in the processing queue
    FINISHED = "finished"


class FinishReason(IntEnum):
    """Why an accepted request ended. When several reasons hold, the smallest wins."""

    CANCELLED = 0  # somebody called cancel()
    DISCONNECTED = 1  # the user went away
    TIMED_OUT = 2  # waited in the request queue longer than `max_queue_wait`
    FAILED = 3  # the model raised; `Request.cause` says what
    STOP_TOKEN = 4
    STOP_STRING = 5
    LENGTH = 6  # `max_new_tokens` reached
    CONTEXT = 7  # no room left in the model's context


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, and when to stop. The defaults choose greedily.

    temperature: 0 takes the most likely token; 1 draws from the model's own distribution.
    top_k: draw among the k most likely tokens only; 0 switches it off.
    top_p: draw among the fewest tokens that together hold this probability; 1 switches it off.
    repetition_penalty: > 1 makes tokens already present less likely; 1 switches it off.
    max_new_tokens: None generates until the context is full.
    stop: texts that end the answer; they are not part of it.
    seed: equal seeds draw equal tokens at equal positions, whoever runs beside (in float32; with fewer bits,
        rounding may decide between two tokens that are close).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = 128
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        def refuse_unless(right: bool, sentence: str) -> None:
            if not right:
                raise InvalidRequest(sentence)

        def whole(value: object) -> bool:
            return isinstance(value, int) and not isinstance(value, bool)

        def between(value: object, least: float, most: float) -> bool:
            return isinstance(value, int | float) and least <= value <= most  # false for NaN

        # Numbers so extreme that float32 cannot hold what they make of logits are refused too.
        refuse_unless(
            self.temperature == 0 or between(self.temperature, 0.001, 1000),
            f"temperature is {self.temperature}: use 0 (greedy), or a number from 0.001 to 1000.",
        )
        refuse_unless(
            whole(self.top_k) and self.top_k >= 0,
            f"top_k is {self.top_k}: use 0 (off) or a positive whole number.",
        )
        refuse_unless(
            between(self.top_p, 1e-6, 1), f"top_p is {self.top_p}: use a number above 0 and at most 1."
        )
        refuse_unless(
            between(self.repetition_penalty, 0.01, 100),
            f"repetition_penalty is {self.repetition_penalty}: use 0.01 to 100; 1 switches it off.",
        )
        refuse_unless(
            self.max_new_tokens is None or (whole(self.max_new_tokens) and self.max_new_tokens >= 1),
            f"max_new_tokens is {self.max_new_tokens}: use a whole number from 1, or None for no limit.",
        )
        refuse_unless(
            isinstance(self.stop, tuple) and all(isinstance(text, str) and text for text in self.stop),
            f"stop is {self.stop!r}: use a tuple of texts that are not empty.",
        )
        refuse_unless(whole(self.seed), f"seed is {self.seed}: use a whole number.")


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """One user's question and the answer so far. Compared and hashed by identity.

    id: unique among the requests an engine holds; empty lets the engine choose one.
    user: who asks. Fair queues and figures' colours go by it; empty means the id.
    priority: smaller is served earlier, in a queue ordered by priority.
    cache_salt: prompts that begin alike share what is computed only if this is equal. Whoever can tell by
        the time to first token what others have asked must not: give each tenant one of its own.
    max_queue_wait: seconds (above 0) this request will wait in the request queue; None waits for ever.
    on_text, on_finish: called with new text, and once at the end, after the engine has
        settled its own state; what they raise is logged and harms nobody.
    """

    prompt: Prompt = field(kw_only=False)
    params: SamplingParams = field(default_factory=SamplingParams, kw_only=False)
    id: str = ""
    user: str = ""
    priority: int = 0
    cache_salt: str = ""
    max_queue_wait: float | None = None
    on_text: Callable[[str], None] | None = None
    on_finish: Callable[[Request], None] | None = None

    # Filled in by the engine.
    state: RequestState = field(default=RequestState.NEW, init=False)
    prompt_ids: list[int] = field(default_factory=list, init=False)
    output_ids: list[int] = field(default_factory=list, init=False)
    stream: TextStream | None = field(default=None, init=False, repr=False)
    uncomputed: int = field(default=0, init=False)  # known tokens whose keys and values are not stored yet
    token_limit: int = field(default=0, init=False)  # the most tokens the answer can have
    arrived: float = field(default=math.nan, init=False)
    admission: int = field(
        default=0, init=False
    )  # the how manieth of the engine's, the last time; 0: not yet
    finish_reason: FinishReason | None = field(default=None, init=False)
    cause: str = field(default="", init=False)
    _text: str = field(default="", init=False)
    _tokens_read: int = field(default=0, init=False)
    _characters_delivered: int = field(default=0, init=False)

    @property
    def text(self) -> str:
        """The answer so far: whole characters, without a stop string or the beginning of one.

        To be read on the thread that drives the engine, because reading decodes: tokens become text when
        somebody reads, so that a simulation of a million pays for none.
        """
        self._decode_new_tokens()
        return self._text

    def has_stopped(self) -> bool:
        """Whether the answer so far contains a stop string."""
        self._decode_new_tokens()
        return self.stream is not None and self.stream.stopped

    def _decode_new_tokens(self) -> None:
        if self.stream is None:
            return
        unread = self.output_ids[self._tokens_read :]
        self._tokens_read += len(unread)
        self._text += "".join(map(self.stream.push, unread))
        if self.finished:
            self._text += self.stream.finish()

    def deliver_text(self) -> None:
        """Hand text that `on_text` has not had to it."""
        if self.on_text is None:
            return
        new = self.text[self._characters_delivered :]
        self._characters_delivered += len(new)
        if new:
            self.on_text(new)

    @property
    def computed(self) -> int:
        """Tokens whose keys and values are stored: the position at which the next chunk begins."""
        return len(self.prompt_ids) + len(self.output_ids) - self.uncomputed

    @property
    def finished(self) -> bool:
        return self.state is RequestState.FINISHED

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Known token ids from position `start` up to `stop`; a fresh list."""
        prompt = len(self.prompt_ids)
        if start >= prompt:
            return self.output_ids[start - prompt : stop - prompt]
        return self.prompt_ids[start:stop] + self.output_ids[: max(0, stop - prompt)]

    def __repr__(self) -> str:
        reason = f", {self.finish_reason.name}" if self.finish_reason is not None else ""
        name = self.id or "without id"
        return f"<Request {name}: {self.state.value}, {len(self.output_ids)} tokens{reason}>"


def shown_prompt(prompt: Prompt) -> str:
    """A prompt as a label shows it: the text, the last message, or how many tokens it has."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Sequence):  # refused, and shown as refused
        return repr(prompt)
    last = prompt[-1] if prompt else None
    return last.get("content", "") if isinstance(last, dict) else f"{len(prompt)} tokens"
