"""Runs a check in a Python of its own, which can be ended: learners' code may loop for ever, or block.

The check and its arguments travel to a child process (by cloudpickle, so that classes written in a
notebook travel whole), and its result comes back. Knows nothing about what is checked.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import linecache
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import cloudpickle
from tqdm.auto import tqdm

DEADLINE = 5.0  # seconds for the check itself
START_UP = 30.0  # seconds for Python and servelab to start, on a slow machine
TOO_LONG = 3  # exit status of a child that ended itself


class TookTooLong(Exception):
    """The check did not end by itself."""


class CannotTravel(Exception):
    """The learner's code holds something that cannot be carried to another process."""


def run_alone(work: Callable[..., Any], *arguments: Any, deadline: float = DEADLINE) -> Any:
    """Call `work` in a child process; print what it printed and return what it returned.

    Raises CannotTravel, and TookTooLong after `deadline` seconds of work. What `work` raises must be its
    own affair.
    """
    with _travelling_whole(arguments):
        try:
            parcel = cloudpickle.dumps((work, arguments, deadline, _written_in_cells()))
        except (TypeError, pickle.PicklingError) as error:
            raise CannotTravel(str(error)) from error
    status, answer, complaint = _in_a_child(parcel, START_UP + deadline)
    if status == TOO_LONG:
        raise TookTooLong
    if status != 0:
        raise RuntimeError(f"The check itself failed: {complaint.decode(errors='replace').strip()[-300:]}")
    result, printed = cloudpickle.loads(answer)
    if printed:
        print(printed, end="")
    return result


def _in_a_child(parcel: bytes, patience: float) -> tuple[int, bytes, bytes]:
    """Its exit status and what it wrote; says meanwhile what is waited for."""
    ends, pipe = time.monotonic() + patience, subprocess.PIPE
    waiting = tqdm(desc="checked in a process of its own", unit="", leave=False, delay=1)
    # In a file, since a pipe must be written again and again while the child is starting.
    with waiting as bar, tempfile.TemporaryFile() as given:
        given.write(parcel)
        given.seek(0)
        command = [sys.executable, "-m", __name__]
        with subprocess.Popen(command, stdin=given, stdout=pipe, stderr=pipe) as child:
            while time.monotonic() < ends:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    written = child.communicate(timeout=0.5)
                    return child.returncode, *written
                bar.update()
            child.kill()
    raise TookTooLong


@contextlib.contextmanager
def _travelling_whole(arguments: tuple[Any, ...]) -> Iterator[None]:
    """Let classes and functions of modules that the child cannot import travel with their code."""
    modules = {inspect.getmodule(one) for one in arguments if inspect.isclass(one) or inspect.isfunction(one)}
    strangers = [one for one in modules if isinstance(one, ModuleType) and _is_strange(one)]
    for module in strangers:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in strangers:
            cloudpickle.unregister_pickle_by_value(module)


def _is_strange(module: ModuleType) -> bool:
    return module.__name__ != "__main__" and not module.__name__.startswith("servelab")


def _written_in_cells() -> dict[str, Any]:
    """The source lines of notebook cells, so that an error can show the learner's own line."""
    return {name: entry for name, entry in linecache.cache.items() if "ipykernel" in name}


def _child() -> None:
    """Do the work that stands on standard input, within its deadline."""
    work, arguments, deadline, cells = cloudpickle.load(sys.stdin.buffer)
    linecache.cache.update(cells)
    # A thread, because it ends a check that blocks as well as one that loops.
    watch = threading.Timer(deadline, os._exit, [TOO_LONG])
    watch.daemon = True
    watch.start()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = work(*arguments)
    watch.cancel()
    sys.stdout.buffer.write(cloudpickle.dumps((result, printed.getvalue())))


if __name__ == "__main__":
    _child()
