"""Errors as a learner sees them in a notebook: their own lines and a sentence, no frames of the library.

Only what servelab itself raised about its arguments is shortened; every other error looks as always, and
`%tb` in a new cell shows any of them whole.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import IPython

import servelab

LIBRARY = str(Path(servelab.__file__).parent)
NOT_THEIRS = (LIBRARY, str(Path(IPython.__file__).parent))


def their_lines(error: BaseException) -> str:
    """The traceback without the library's own frames, and the error's sentence."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [
        f"line {frame.lineno}, in {frame.name}: {frame.line}"
        for frame in frames
        if not frame.filename.startswith(NOT_THEIRS)
    ]
    return "\n".join([*lines, f"{type(error).__name__}: {error}"])


def was_said_by_us(error: BaseException) -> bool:
    """Whether servelab raised it, to say what is wrong with what it was given."""
    frames = traceback.extract_tb(error.__traceback__)
    about_arguments = isinstance(error, ValueError | TypeError)
    ours = about_arguments or type(error).__module__.partition(".")[0] == "servelab"
    return ours and bool(frames) and frames[-1].filename.startswith(LIBRARY)


def shorten_in_notebooks() -> None:
    """From now on; does nothing outside a notebook."""
    shell = IPython.get_ipython()
    if shell is not None:
        shell.set_custom_exc((Exception,), _show)


def _show(
    shell: Any, kind: type, error: Exception, trace: TracebackType, tb_offset: int | None = None
) -> None:
    if was_said_by_us(error):
        sys.last_type, sys.last_value, sys.last_traceback = kind, error, trace  # what `%tb` looks for
        shell._showtraceback(kind, error, their_lines(error).splitlines())
    else:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
