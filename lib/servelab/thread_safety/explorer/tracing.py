"""Stops a thread before each operation on what is shared, in the reader's own functions.

Python says before every instruction where it is: to a trace function in 3.11, to `sys.monitoring` from 3.12
on, where trace functions of several threads have crashed (seen with 3.12.1). Knows nothing about who
goes next.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any

from servelab.thread_safety.explorer.operations import Operation, operations
from servelab.thread_safety.explorer.scheduler import scheduler_here
from servelab.thread_safety.explorer.user_code import is_yours

# Given the operation that the running thread is about to do; may hold it there.
Before = Callable[[Operation], None]

# Before which operations of a function to stop, by offset; given its code and its globals.
Points = Callable[[CodeType, Mapping[str, Any]], dict[int, Operation]]

_known: dict[CodeType, dict[int, Operation]] = {}


def own_operations(code: CodeType, names: Mapping[str, Any]) -> dict[int, Operation]:
    """All operations of the reader's functions, none of libraries'. Kept, for finding them is slow."""
    if code not in _known:
        _known[code] = operations(code, names) if is_yours(code, names) else {}
    return _known[code]


class _ByTraceFunction:
    """In a `with` block: stops the threads that called what the block is given."""

    def __init__(self, before: Before, points: Points = own_operations) -> None:
        self._before = before
        self._points = points

    def __enter__(self) -> Callable[[], object]:
        """What a thread has to call first, for which it holds until the thread ends."""
        return lambda: sys.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        pass

    def _enter(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if not self._points(frame.f_code, frame.f_globals):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._instruction

    def _instruction(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        if event == "opcode":
            operation = self._points(frame.f_code, frame.f_globals).get(frame.f_lasti)
            if operation is not None:
                self._before(operation)
        return self._instruction


if sys.version_info >= (3, 12):
    _TOOL = 4  # one of the numbers left free for tools that nobody else has heard of

    class _ByMonitoring:
        """In a `with` block: stops the threads that have a scheduler."""

        def __init__(self, before: Before, points: Points = own_operations) -> None:
            self._before = before
            self._points = points
            self._watched: dict[CodeType, dict[int, Operation]] = {}
            # Events are asked for each code object, and two of the same source are equal, but not the same.
            self._told: dict[int, CodeType] = {}

        def __enter__(self) -> Callable[[], object]:
            monitoring, events = sys.monitoring, sys.monitoring.events
            monitoring.use_tool_id(_TOOL, "servelab interleavings")
            monitoring.register_callback(_TOOL, events.PY_START, self._enter)
            monitoring.register_callback(_TOOL, events.INSTRUCTION, self._instruction)
            monitoring.set_events(_TOOL, events.PY_START)
            return lambda: None

        def __exit__(self, *_: object) -> None:
            for code in self._told.values():
                sys.monitoring.set_local_events(_TOOL, code, 0)
            sys.monitoring.set_events(_TOOL, 0)
            sys.monitoring.free_tool_id(_TOOL)

        def _enter(self, code: CodeType, offset: int) -> None:
            if scheduler_here() is None or id(code) in self._told:
                return
            points = self._points(code, sys._getframe(1).f_globals)
            if points:
                self._watched[code], self._told[id(code)] = points, code
                sys.monitoring.set_local_events(_TOOL, code, sys.monitoring.events.INSTRUCTION)

        def _instruction(self, code: CodeType, offset: int) -> None:
            if scheduler_here() is not None:
                operation = self._watched[code].get(offset)
                if operation is not None:
                    self._before(operation)

    Tracer = _ByMonitoring
else:
    Tracer = _ByTraceFunction
