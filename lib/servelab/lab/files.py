"""Files that belong to a learner: written whole or not at all, and never lost to another one.

Knows nothing about what is in them.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a file and its folder; an interruption leaves the old file or the new one. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8", newline="\n")
    unfinished.replace(file)


def put_aside(file: Path, name: str = "") -> Path:
    """Give a file its name, or a shorter one, with the date and time, so that another can take its place."""
    stem, number = f"{name or file.stem}.{datetime.now():%Y-%m-%d_%H-%M-%S}", 1
    dated = file.with_name(f"{stem}{file.suffix}")
    while dated.exists():  # two within a second are both kept
        number += 1
        dated = file.with_name(f"{stem}-{number}{file.suffix}")
    file.rename(dated)
    return dated
