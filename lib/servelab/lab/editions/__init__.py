"""Other forms of the course, made from the notebooks alone: static pages, and a workshop to hand out."""

from pathlib import Path


class EditionError(Exception):
    """An edition cannot be made; the message says what to do next."""


def require_new(folder: Path) -> None:
    """Nothing of somebody's may be lost: an edition goes into a folder of its own."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EditionError(f"{folder} is not empty: name a new folder, so that nothing in it is lost.")
