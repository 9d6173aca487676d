"""What the engine asks of a model.

Says nothing about how tokens are computed: a script, a transformer on a CPU and one on a
GPU answer the same questions. Imports no torch, so the core can be typed against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from servelab.request import Prompt, Request


@dataclass(slots=True)  # not frozen: one is made for every token, and frozen costs four times as much
class Chunk:
    """The tokens of one request that are computed in one step.

    start: position of the first of them, which is how many tokens are already stored.
    token_ids: at least one.
    samples: True when these are the last known tokens, so that the step yields the next one.
    """

    request: Request
    start: int
    token_ids: list[int]
    samples: bool


Outcome = int | None | Exception
"""Of one chunk: the next token id; None when the chunk does not sample; that request's own error."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the model: the unit in which policies decide.

    started: when it began (s).
    paid: tokens the model computes in all, padding included.
    keys_read: stored tokens attention reads, over all chunks.
    blocks: of the KV memory, taken for it.
    """

    started: float
    chunks: list[Chunk]
    paid: int
    keys_read: int
    blocks: tuple[int, ...] = ()


class StepCost(Protocol):
    def step_seconds(self, step: Step) -> float:
        """How long a step takes."""
        ...


class KVMemory(Protocol):
    """The memory for keys and values where it is given out in blocks, as the engine and a policy see it.

    blocks, block_size: so many blocks, of so many tokens each. free: how many nobody holds.
    """

    @property
    def blocks(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def free(self) -> int: ...

    def cached(self, request: Request) -> int:
        """How many tokens of a request that does not run are computed already; at least one never is."""
        ...

    def fits(
        self, tokens: Mapping[Request, int], admit: Iterable[Request] = (), preempt: Iterable[Request] = ()
    ) -> bool:
        """Whether there are blocks for so many more tokens of each, if some are admitted and preempted."""
        ...

    def admit(self, request: Request) -> tuple[int, ...]:
        """Give the request the blocks that hold its first tokens already; returns them."""
        ...

    def grow(self, request: Request, tokens: int) -> tuple[int, ...]:
        """Room for so many tokens of the request in all; returns the blocks that it takes."""
        ...

    def store(self, request: Request) -> None:
        """What the request has computed may be found by others from now on."""
        ...

    def release(self, request: Request, *, spoiled: bool = False) -> None:
        """Take back what the request holds. spoiled: nobody is to find it any more."""
        ...


class TokenModel(Protocol):
    """One model, held by one engine.

    name: what figures and traces call it.
    real: True when a neural network computes the tokens.
    context_length: most tokens (prompt and answer) of one request.
    slots: most requests whose keys and values are kept at once.
    stop_token_ids: tokens that end an answer.
    cost: how long steps take on a virtual clock; None takes the default cost model.
    memory: who holds which blocks; None: everybody has room for the whole context, and may always go on.
    """

    @property
    def name(self) -> str: ...
    @property
    def real(self) -> bool: ...
    @property
    def context_length(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def stop_token_ids(self) -> frozenset[int]: ...
    @property
    def cost(self) -> StepCost | None: ...
    @property
    def memory(self) -> KVMemory | None: ...

    def encode(self, prompt: Prompt) -> list[int]:
        """Prompt to token ids; may be empty. With a chat template, a text is one user message."""
        ...

    def piece(self, token_id: int) -> bytes:
        """The UTF-8 bytes a token adds to the text: perhaps half a character; empty for special tokens."""
        ...

    def run(self, chunks: Sequence[Chunk], paid: int) -> Sequence[Outcome]:
        """Compute one step. A request's first chunk (start 0) takes a slot.

        `paid` is at least the sum of the chunks' tokens; the surplus is computed as dummy
        tokens, since padding takes time whether or not anyone reads it. Returns one outcome
        per chunk, in order. Raising fails every request of the step; after it no slot may
        hold anything that could reach a later request.
        """
        ...

    def release(self, request: Request) -> None:
        """Give the request's slot back; does nothing for a request without one."""
        ...
