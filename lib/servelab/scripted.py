"""A model that says what it is told to: exact and instant, for demonstrations and tests.

Computes nothing. What it answers depends on the prompt and on how many requests came
before; how long it takes, on a virtual clock, on two numbers, exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice

from servelab.model import Chunk, KVMemory, Outcome, Step, StepCost
from servelab.request import Prompt, Request, shown_prompt

Script = Callable[[str, int], str]
"""From a prompt, and how many requests came before it, to the whole answer."""

STOP = 0
SENTENCES = (
    "A queue is a line of requests that wait for their turn.",
    "Taking turns gives everyone an early first word.",
    "The model computes one step at a time.",
)
LONG_TEXT = "and so the next word follows the last one"


def words(text: str) -> list[bytes]:
    """Each word with the space before it."""
    return [word.encode() for word in re.findall(r"\s*\S+|\s+$", text)]


def characters(text: str) -> list[bytes]:
    """One character each, as with many Japanese tokens."""
    return [character.encode() for character in text]


def utf8_bytes(text: str) -> list[bytes]:
    """One byte each, so that most characters of the world take several tokens."""
    return [bytes([byte]) for byte in text.encode()]


@dataclass(frozen=True, slots=True)
class ScriptedCost:
    """A step takes `time_per_token`, and `initial_wait` more when a prompt begins in it (seconds).

    How many share the step changes nothing, so this cannot compare batching strategies:
    `CostModel` can.
    """

    initial_wait: float
    time_per_token: float

    def __post_init__(self) -> None:
        for name, seconds in (("initial_wait", self.initial_wait), ("time_per_token", self.time_per_token)):
            if not 0 <= seconds < math.inf:
                raise ValueError(f"{name} is {seconds}: use seconds from 0.")

    def step_seconds(self, step: Step) -> float:
        begins = any(chunk.start == 0 for chunk in step.chunks)
        return self.time_per_token + (self.initial_wait if begins else 0.0)


class ScriptedModel:
    """A TokenModel that follows a script.

    initial_wait, time_per_token: seconds; when neither is given, steps cost what the engine's
        cost model says on a virtual clock, and nothing on the wall clock.
    split: cuts texts into tokens: `words`, `characters` or `utf8_bytes`.
    memory: gives out blocks for keys and values as if it kept some, as in `Blocks(100)`; none: enough for
    all.
    """

    real = False

    def __init__(
        self,
        script: Script,
        *,
        initial_wait: float | None = None,
        time_per_token: float | None = None,
        split: Callable[[str], Iterable[bytes]] = words,
        context_length: int = 4096,
        slots: int = 1024,
        memory: KVMemory | None = None,
        name: str = "scripted model",
    ) -> None:
        self.name = name
        self.memory = memory
        room = memory.blocks * memory.block_size if memory is not None else context_length
        self.context_length = min(context_length, room)
        self.slots = slots
        self.stop_token_ids = frozenset({STOP})
        timed = initial_wait is not None or time_per_token is not None
        self.cost: StepCost | None = (
            ScriptedCost(initial_wait or 0.0, time_per_token or 0.0) if timed else None
        )
        self._script = script
        self._split = split
        self._ids: dict[bytes, int] = {b"": STOP}
        self._pieces = [b""]
        self._answers: dict[Request, tuple[int, ...]] = {}
        self._tokens = lru_cache(maxsize=256)(self._cut)  # many requests get the same text
        self._came_before = 0

    @classmethod
    def echo(cls, **settings: object) -> ScriptedModel:
        """Answers with the prompt itself."""
        return cls(lambda prompt, _: prompt, **settings)  # type: ignore[arg-type]

    @classmethod
    def round_robin(cls, sentences: Sequence[str] = SENTENCES, **settings: object) -> ScriptedModel:
        """The first request gets the first sentence, the second the second, and round again."""
        return cls(lambda _, came_before: sentences[came_before % len(sentences)], **settings)  # type: ignore[arg-type]

    @classmethod
    def long_text(cls, length: int = 4096, **settings: object) -> ScriptedModel:
        """Answers of `length` words, so that `max_new_tokens` decides where they end."""
        answer = " ".join(islice(cycle(LONG_TEXT.split()), length))
        return cls(lambda _, __: answer, **settings)  # type: ignore[arg-type]

    @property
    def held(self) -> int:
        """Slots in use."""
        return len(self._answers)

    def encode(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str) and all(isinstance(token, int) for token in prompt):
            return [token for token in prompt if isinstance(token, int)]
        return list(self._tokens(shown_prompt(prompt)))

    def piece(self, token_id: int) -> bytes:
        return self._pieces[token_id] if token_id < len(self._pieces) else b""

    def run(self, chunks: Sequence[Chunk], paid: int) -> list[Outcome]:
        return [self._next_token(chunk.request) if chunk.samples else None for chunk in chunks]

    def release(self, request: Request) -> None:
        self._answers.pop(request, None)

    def _next_token(self, request: Request) -> int:
        answer = self._answers.get(request) or self._begin(request)
        return answer[len(request.output_ids)]

    def _begin(self, request: Request) -> tuple[int, ...]:
        if self.memory is None and len(self._answers) >= self.slots:  # a preempted one's answer is kept
            raise RuntimeError(
                f"All {self.slots} slots are taken: lower the limit or give the model more slots."
            )
        text = self._script(shown_prompt(request.prompt), self._came_before)
        self._came_before += 1
        answer = self._answers[request] = (*self._tokens(text), STOP)
        return answer

    def _cut(self, text: str) -> tuple[int, ...]:
        return tuple([self._token(piece) for piece in self._split(text)])

    def _token(self, piece: bytes) -> int:
        if piece not in self._ids:
            self._ids[piece] = len(self._pieces)
            self._pieces.append(piece)
        return self._ids[piece]
