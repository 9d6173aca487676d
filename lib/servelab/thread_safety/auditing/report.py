"""What an audit found: findings with their place and cure, and a verdict in a sentence.

Knows nothing about how it was found.
"""

from __future__ import annotations

import linecache
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import CodeType

MOST_CURES, MOST_NUMBERS = 3, 6  # in the sentence; the findings below it have all of them
WIDTH = 98  # characters of a line that a notebook shows without breaking it
_STATE = "keep it in a local variable, guard it with a lock, or lend out instances from a pool"
_LEFT = "keep it in a local variable, or pass it in and return it"  # the next one finds it, in a pool too
_IN_PIECES = "guard the whole call with one lock, or lend out instances from a pool"


class Kind(Enum):
    """What was found, in the words of the report, and what helps."""

    ATTRIBUTE = "attribute changes in forward", _STATE
    BUFFER = "buffer changes in forward", _STATE
    PARAMETER = "parameter changes in forward", "do not train and serve with one instance: load a second one"
    REWRITTEN = "attribute is written in forward (the same value in this run)", _STATE
    OUTSIDE = (
        "state outside the module changes in forward",
        "pass the value in and return it, or keep it per thread (threading.local)",
    )
    HOOK = (
        "forward hook changes shared state",
        "return the value from forward, or keep it per call (contextvars) instead of in one place",
    )
    INPUT = (
        "the input is edited in place",
        "compute a new tensor (x * 2) instead of editing the caller's (x.mul_(2))",
    )
    RANDOM = (
        "draws from a global random generator",
        "give each request a torch.Generator of its own, with its own seed",
    )
    WRAPPER = "wrapper that is not made for several threads", "serve the module inside it"
    TRAINING = "training mode", "call model.eval() once, before the threads begin"
    GRADIENTS = "the output keeps activations, as for training", "enter torch.inference_mode() in each thread"

    def __init__(self, words: str, cure: str) -> None:
        self.words = words
        self.cure = cure


class Verdict(Enum):
    SAFE = "safe"
    GUARDED = "guarded"
    SUSPECT = "suspect"
    UNSAFE = "unsafe"


@dataclass(frozen=True, slots=True)
class Finding:
    """path: of the module, "" for the whole model. name: of the attribute, buffer or variable.

    code, line: where it changed, if it did. guarded: a lock was held at that moment.
    """

    kind: Kind
    path: str
    name: str
    cure: str
    code: CodeType | None = None
    line: int = 0
    guarded: bool = False

    @property
    def place(self) -> str:
        """File and line; the file as it is called everywhere: `torch/nn/modules/batchnorm.py`, `mine.py`."""
        if self.code is None:
            return ""
        path = Path(self.code.co_filename)
        inside = re.match(r"(?:.*/(?:site|dist)-packages|.*/lib)/(.+)", path.as_posix())
        name = "this notebook" if "ipykernel" in path.as_posix() else path.name
        return f"{inside[1] if inside else name}:{self.line}"

    @property
    def source(self) -> str:
        """What stands there."""
        return "" if self.code is None else linecache.getline(self.code.co_filename, self.line).strip()

    def __str__(self) -> str:
        what = ".".join(part for part in (self.path, self.name) if part)
        guarded = " (a lock is held)" if self.guarded else ""
        first = f"{what}: {self.kind.words}{guarded}" if what else f"{self.kind.words}{guarded}"
        return f"{first}\n       {self.place}\n           {self.source}".rstrip() if self.place else first


Findings = Sequence[Finding]


@dataclass(frozen=True, slots=True)
class Interference:
    """Whether a second call, forced into the middle of a first, changed what either of them gave.

    tried: at how many places. changed: at how many of them something came out differently.
    example: such a case, in a sentence. in_turn_too: two calls one after the other do it already.
    """

    tried: int = 0
    changed: int = 0
    example: str = ""
    in_turn_too: bool = False


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Speaks of the run it saw, and of no other.

    problems: what was found. notes: what a caller should know, but what changes nothing that callers share.
    """

    model: str
    verdict: Verdict
    sentence: str
    problems: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    interference: Interference

    def __str__(self) -> str:
        lines = [_wrapped(f"{self.verdict.value.upper()}: {self.sentence}")]
        lines += [f"{number:>3}  {finding}" for number, finding in enumerate(self.problems, start=1)]
        lines += [_wrapped(f"  note: {one}. {one.cure[0].upper()}{one.cure[1:]}.") for one in self.notes]
        return "\n".join([*lines, _wrapped(self.seen)])

    @property
    def seen(self) -> str:
        """What the audit is based on."""
        tried = self.interference.tried
        forced = (
            f", and {tried} in which a second call was forced into the middle of a first" if tried else ""
        )
        return (
            f"This speaks of the calls it saw: two with the example, one after the other{forced}. "
            "Other inputs may take other paths, and not all state can be seen: what is itself again when a "
            "line ends, what lru_cache or an iterator keeps, objects more than four deep."
        )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="     ")


def judge(model: str, problems: Findings, notes: Findings, met: Interference) -> AuditReport:
    """The verdict that follows from what was found."""
    open_ones = [one for one in problems if not one.guarded]
    cures = _cures(problems, open_ones, met.in_turn_too)
    verdict = Verdict.UNSAFE
    if met.in_turn_too:
        sentence = f"a second call of this {model} gives something else after a first one than alone. {cures}"
    elif met.changed:
        sentence = (
            f"two calls of this {model} disturb each other: {met.changed} of {met.tried} "
            f"forced meetings went wrong (in one, {met.example}). {cures}"
        )
    elif not problems:
        verdict = Verdict.SAFE
        sentence = f"nothing was seen that a call of this {model} changes for another one."
    elif not open_ones:
        verdict = Verdict.GUARDED
        sentence = (
            f"this {model} changes its own state, each time under a lock, and {met.tried} forced "
            "meetings of two calls did no harm. It may be shared; calls wait for each other there."
        )
    elif all(one.kind in (Kind.REWRITTEN, Kind.WRAPPER) for one in open_ones):
        verdict = Verdict.SUSPECT
        sentence = f"nothing came out wrong, but do not share this {model} yet. {cures}"
    else:
        sentence = f"this {model} changes what other calls see. {cures}"
    return AuditReport(model, verdict, sentence, tuple(problems), tuple(notes), met)


def _cures(problems: Findings, open_ones: Findings, in_turn_too: bool) -> str:
    """The cures, each once, the most frequent first, and where there are several, of which findings.

    What one call leaves to the next, no lock and no pool cures; where each part has a lock already, one
    lock around all of them does.
    """
    to_cure = problems if in_turn_too else open_ones or problems
    state = _LEFT if in_turn_too else _STATE if open_ones else _IN_PIECES
    numbers: dict[str, list[int]] = {}
    for number, one in enumerate(problems, start=1):
        if one in to_cure:
            numbers.setdefault(state if one.cure == _STATE else one.cure, []).append(number)
    if not numbers:
        return "What changes was not seen: look for a cache, an iterator or a setting that a call leaves."
    if len(numbers) == 1:
        return f"Cure: {next(iter(numbers))}."
    by_frequency = sorted(numbers.items(), key=lambda item: -len(item[1]))
    cures = [f"for {_listed(some)}, {cure}" for cure, some in by_frequency[:MOST_CURES]]
    return f"Cures: {'; '.join(cures)}."


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:MOST_NUMBERS])) + (" ..." if len(numbers) > MOST_NUMBERS else "")
