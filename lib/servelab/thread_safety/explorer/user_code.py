"""Whose code it is: the reader's own, or a library's. Knows nothing about what the code does.

Libraries are taken as they are: a thread is stopped, and a change looked for, in the reader's own functions.
Specimens of faults count as the reader's.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import Any

import servelab

_OURS = Path(servelab.__file__).parent.resolve()
_SPECIMENS = str(_OURS / "thread_safety" / "specimens")
_PLACES = ("stdlib", "platstdlib", "purelib", "platlib")
_LIBRARIES = (str(_OURS), *(str(Path(sysconfig.get_path(key)).resolve()) for key in _PLACES))
_INSTALLED = {"site-packages", "dist-packages"}


def is_yours(code: CodeType, names: Mapping[str, Any]) -> bool:
    """Whether a function is the reader's (or one of our specimens), and not part of a library.

    names: its globals. They say where code belongs that was made from a string, as dataclasses do.
    """
    made_from_string = code.co_filename.startswith("<")
    where = names.get("__file__") if made_from_string else code.co_filename
    if where is None:
        return not code.co_filename.startswith("<frozen")
    return is_file_of_yours(where)


@functools.lru_cache(maxsize=4096)  # asked about each function that is entered
def is_file_of_yours(where: str) -> bool:
    """Whether it is the reader's (or one of our specimens)."""
    path = Path(where).resolve()
    installed = not _INSTALLED.isdisjoint(path.parts)  # also for the user alone, or for all environments
    library = installed or str(path).startswith(_LIBRARIES)
    return str(path).startswith(_SPECIMENS) or not library


def is_class_of_yours(kind: type) -> bool:
    """Whether a class is the reader's: one made in a notebook has no file."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return kind.__module__ not in sys.builtin_module_names and (file is None or is_file_of_yours(file))
