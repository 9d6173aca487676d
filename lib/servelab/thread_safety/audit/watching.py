"""Watches one call of a model line by line, and notes on which line something shared changed.

A trace function looks, after every line of a module's own methods and of hooks, at what that module
or hook owns. Runs on one thread; knows nothing about verdicts.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from torch import nn

from servelab.thread_safety.audit.report import Kind
from servelab.thread_safety.audit.shared_state import (
    Look,
    Owner,
    class_owner,
    function_owner,
    functions_with_variables,
    globals_owner,
    hooks,
    module_owner,
    object_owner,
    reached,
    weights_owner,
)
from servelab.thread_safety.locks import ScheduledLock, ScheduledRLock
from servelab.thread_safety.operations import is_yours, rewritten_attributes
from servelab.values.fingerprints import is_replaced_by_equal

# Where torch stores attributes and calls forward: a change there is the doing of the line that asked for it.
FEW = 16  # modules below one, which are all looked at
_MACHINERY = str(Path(nn.Module.__call__.__code__.co_filename))


@dataclass(frozen=True, slots=True)
class Change:
    """Something shared that changed, and the line after which it was different."""

    kind: Kind
    path: str
    name: str
    code: CodeType
    line: int
    guarded: bool

    @property
    def place(self) -> str:
        return f"{short_name(self.code)}:{self.line}"

    @property
    def source(self) -> str:
        return linecache.getline(self.code.co_filename, self.line).strip()


def short_name(code: CodeType) -> str:
    """The file without folders that only this machine has: `torch/nn/modules/batchnorm.py`, `my_model.py`."""
    path = Path(code.co_filename)
    for folder in ("site-packages", "dist-packages", "lib"):
        if folder in path.parts[:-1]:
            return "/".join(path.parts[len(path.parts) - path.parts[::-1].index(folder) :])
    return "this notebook" if "ipykernel" in code.co_filename else path.name


class Guard:
    """The locks of a watched copy of a model; makes them for `fresh_copy`."""

    def __init__(self) -> None:
        self._locks: list[ScheduledLock] = []
        self._semaphores: list[threading.Semaphore] = []

    def know(self, model: nn.Module) -> None:
        """Semaphores that let one in are locks, too."""
        self._semaphores = [
            value
            for module in model.modules()
            for value in vars(module).values()
            if isinstance(value, threading.Semaphore) and value._value == 1
        ]

    def new_lock(self) -> ScheduledLock:
        self._locks.append(ScheduledLock())
        return self._locks[-1]

    def new_rlock(self) -> ScheduledRLock:
        lock = ScheduledRLock()
        self._locks.append(lock)
        return lock

    def releases(self) -> int:
        """How often a lock has become free."""
        return sum(lock.releases for lock in self._locks)

    def is_held(self) -> bool:
        return any(lock.locked() for lock in self._locks) or any(one._value == 0 for one in self._semaphores)


class _Line:
    """What one frame knows of locks: a lock held at its line, or released since its last one.

    Each frame keeps its own count: `with lock: ...` is over at the end of a line, also when it stands in a
    function which that line calls.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._releases = guard.releases()

    def was_guarded(self) -> bool:
        before, self._releases = self._releases, self._guard.releases()
        return self._releases > before or self._guard.is_held()


class Watch:
    """changes: what changed, and the lines that changed it, each once and in order."""

    def __init__(self, model: nn.Module, everywhere: Sequence[Owner], guard: Guard) -> None:
        self.changes: list[Change] = []
        self._model = model
        self._guard = guard
        self._everywhere = everywhere
        inside, objects = reached(model)
        self._of_module = {id(one): module_owner(path, one) for path, one in inside}
        self._of_object = {id(one): object_owner(path, one) for path, one in objects}
        self._below = {id(one): self._owners_below(one) for _, one in inside}
        self._weights = [weights_owner(path, one) for path, one in inside]
        self._classes = {id(one): class_owner(path, one) for path, one in inside}
        self._of_hook: dict[CodeType | None, list[tuple[str, Callable[..., Any]]]] = {}
        for path, one in inside:
            for hook in hooks(one):
                self._of_hook.setdefault(code_of(hook), []).append((path, hook))
        self._of_method = {
            function.__code__: function for _, one in inside for function in functions_with_variables(one)
        }
        self._of_twin = frozenset(id(one) for one in model.modules())
        self._last = _Line(guard)
        guard.know(model)
        self._seen: dict[tuple[str, int], Look] = {}

    def _owners_below(self, module: nn.Module) -> list[Owner]:
        """A module may write on those it contains: on all of them, or where there are many, the nearest."""
        if isinstance(module, nn.Sequential):  # many children, and it writes on none
            return []
        below = [one for one in module.modules() if one is not module]
        nearest = below if len(below) <= FEW else list(module.children())
        return [self._of_module[id(one)] for one in nearest]

    def call(self, work: Callable[[], Any]) -> Any:
        """Do the work, watched. What watched the thread before (a debugger, coverage) is put back."""
        before = sys.gettrace()
        for owner in self._all():
            self._seen.setdefault(owner.key, owner.look())
        sys.settrace(self._enter)
        try:
            result = work()
        finally:
            sys.settrace(before)
        self._compare_all()
        return result

    def _all(self) -> list[Owner]:
        own = [*self._of_module.values(), *self._of_object.values(), *self._classes.values()]
        return [*own, *self._everywhere, *self._weights]

    def _compare_all(self) -> None:
        """What no watched line explains is laid to the model's forward as a whole."""
        forward = code_of(inspect.getattr_static(self._model, "forward", None)) or _UNKNOWN
        self._compare(self._all(), forward, forward.co_firstlineno, self._last.was_guarded())

    def _enter(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        owners = self._owners(frame)
        if not owners:
            return None
        for owner in owners:
            self._seen.setdefault(owner.key, owner.look())
        return self._line_by_line(owners, frame)

    def _line_by_line(self, owners: Sequence[Owner], frame: FrameType) -> Callable[..., Any]:
        last = frame.f_lineno
        of_module = owners[0].key[0] == "module"
        rewritten = rewritten_attributes(frame.f_code) if of_module else {}
        locks = _Line(self._guard)

        def at_line(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
            nonlocal last
            if event in ("line", "return"):
                guarded = locks.was_guarded()
                self._last.was_guarded()
                self._compare(owners, frame.f_code, last, guarded)
                for name in rewritten.get(last, ()):
                    self._note(Kind.REWRITTEN, owners[0].path, name, frame.f_code, last, guarded)
                last = frame.f_lineno
            return at_line

        return at_line

    def _owners(self, frame: FrameType) -> list[Owner]:
        """Whose things the function of this frame may change."""
        code = frame.f_code
        if code.co_filename == _MACHINERY:
            return []
        if code in self._of_hook:
            given = [self._of_module[id(one)] for one in _given(frame) if id(one) in self._of_module]
            own = [
                owner
                for path, hook in self._of_hook[code]
                for owner in (
                    function_owner(path, hook, Kind.HOOK, self._of_twin),
                    globals_owner(path, code, frame.f_globals, Kind.HOOK),
                )
            ]
            return [*own, *given, *self._everywhere]
        first = code.co_varnames[0] if code.co_argcount else "self"
        module = self._of_module.get(id(frame.f_locals.get(first)))
        if not is_yours(code, frame.f_globals):
            return [] if module is None else [module, *self._below[module.key[1]], *self._everywhere]
        if module is None:
            return self._of_plain_function(frame)
        own = [module, *self._below[module.key[1]], self._classes[module.key[1]]]
        own.append(globals_owner(module.path, code, frame.f_globals, Kind.OUTSIDE))
        if code in self._of_method:
            own.append(function_owner(module.path, self._of_method[code], Kind.OUTSIDE, self._of_twin))
        return [*own, *self._given_by_name(frame, beside=module), *self._everywhere]

    def _of_plain_function(self, frame: FrameType) -> list[Owner]:
        own = globals_owner("", frame.f_code, frame.f_globals, Kind.OUTSIDE)
        return [own, *self._given_by_name(frame), *self._everywhere]

    def _given_by_name(self, frame: FrameType, beside: Owner | None = None) -> list[Owner]:
        """Modules, and objects that the model holds, among what a function was given."""
        known = {**self._of_object, **self._of_module}
        given = {id(one): known[id(one)] for one in _given(frame) if id(one) in known}
        return [owner for owner in given.values() if owner is not beside]

    def _compare(self, owners: Sequence[Owner], code: CodeType, line: int, guarded: bool) -> None:
        for owner in owners:
            now, before = owner.look(), self._seen[owner.key]
            if now != before:
                for kind, name in _different(before, now):
                    same = is_replaced_by_equal(before.get((kind, name)), now.get((kind, name)))
                    what = Kind.REWRITTEN if same and kind is Kind.ATTRIBUTE else kind
                    self._note(what, owner.path, name, code, line, guarded)
                self._seen[owner.key] = now

    def _note(self, kind: Kind, path: str, name: str, code: CodeType, line: int, guarded: bool) -> None:
        change = Change(kind, path, name, code, line, guarded)
        if change not in self.changes:
            self.changes.append(change)


def _given(frame: FrameType) -> list[Any]:
    """What a function was given when it was called: arguments, and variables around it."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    names = (*code.co_varnames[:count], *code.co_freevars)
    return [frame.f_locals[name] for name in names if name in frame.f_locals]


def code_of(function: Any) -> CodeType | None:
    """Of a function, a method, or an object that can be called; None where it is not written in Python."""
    while isinstance(function, functools.partial):
        function = function.func
    plain = getattr(function, "__func__", function)
    plain = plain if hasattr(plain, "__code__") else vars(type(plain)).get("__call__")
    code = getattr(plain, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _different(before: Mapping[Any, Any], now: Mapping[Any, Any]) -> list[tuple[Kind, str]]:
    return [key for key in {**before, **now} if before.get(key, _NONE) != now.get(key, _NONE)]


_NONE = object()
_UNKNOWN = (lambda: None).__code__  # for modules whose forward is not written in Python
