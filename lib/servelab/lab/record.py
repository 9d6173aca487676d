"""The learner's own guesses over the course, in a small JSON file in their data folder.

Belongs to the learner alone: nothing reads it but `record()`, and deleting it loses nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from servelab.lab.files import write_whole


@dataclass(frozen=True)
class Guess:
    """What was guessed, and what it was. `was` is empty until the lesson compared them."""

    question: str
    guess: str
    was: str = ""
    close: bool | None = None
    after_seeing: bool = False


def data_folder() -> Path:
    """Where this system keeps a user's data; `SERVELAB_DATA` names another place."""
    if named := os.environ.get("SERVELAB_DATA"):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", Path.home() / "AppData/Roaming")) / "servelab"
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support/servelab"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "servelab"


def _file() -> Path:
    return data_folder() / "guesses.json"


def guesses() -> dict[str, Guess]:
    """By question, in the order in which they were first answered. A damaged file counts as none."""
    try:
        stored = json.loads(_file().read_text(encoding="utf-8"))
        return {one["question"]: Guess(**one) for one in stored}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def remember(guess: Guess) -> None:
    """Store a guess in place of the earlier one to the same question, if there is a place to write."""
    known = guesses() | {guess.question: guess}
    try:
        write_whole(_file(), json.dumps([asdict(one) for one in known.values()], indent=1))
    except OSError as problem:
        print(f"Your guess could not be kept ({problem.strerror}); the lesson goes on.")


class Record:
    """All guesses so far, as a table."""

    def __init__(self) -> None:
        self.guesses = list(guesses().values())

    def __repr__(self) -> str:
        if not self.guesses:
            return "No guesses yet."
        return "\n".join(
            f"{one.question} You: {one.guess}. It was: {one.was or '?'}." for one in self.guesses
        )

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td style='text-align:left'>{escape(one.question)}</td><td>{escape(one.guess)}</td>"
            f"<td>{escape(one.was) or '–'}</td><td>{_how(one)}</td></tr>"
            for one in self.guesses
        )
        head = "<tr><th style='text-align:left'>question</th><th>you</th><th>it was</th><th></th></tr>"
        return f"<table>{head}{rows}</table>" if rows else "No guesses yet."


def _how(guess: Guess) -> str:
    if guess.after_seeing:
        return "after seeing"
    return {True: "as expected", False: "a surprise", None: ""}[guess.close]


def record() -> Record:
    """Your guesses over the course."""
    return Record()
