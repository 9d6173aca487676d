"""Watches one call of a model line by line, and notes on which line something shared changed.

A trace function looks, after every line of a module's own methods and of hooks, at what that module
or hook owns. Runs on one thread; knows nothing about verdicts.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from servelab.thread_safety.auditing import shared_state
from servelab.thread_safety.auditing.report import Finding, Kind
from servelab.thread_safety.auditing.shared_state import Owner
from servelab.thread_safety.explorer.locks import ScheduledLock
from servelab.thread_safety.explorer.user_code import is_yours

FEW = 16  # modules below one, which are all looked at

# Where torch stores attributes and calls forward: a change there is the doing of the line that asked for it.
_MACHINERY = str(Path(nn.Module.__call__.__code__.co_filename))
_Lines = Mapping[int, tuple[str, ...]]
_UNKNOWN = (lambda: None).__code__  # for modules whose forward is not written in Python


class Guard:
    """The locks of a watched copy of a model; makes them for `fresh_copy`."""

    def __init__(self) -> None:
        self._locks: list[ScheduledLock] = []
        self._semaphores: list[threading.Semaphore] = []

    def new(self, kind: type[ScheduledLock]) -> ScheduledLock:
        self._locks.append(kind())
        return self._locks[-1]

    def know(self, model: nn.Module) -> None:
        """Semaphores that let one in are locks, too."""
        values = [value for module in model.modules() for value in vars(module).values()]
        semaphores = [one for one in values if isinstance(one, threading.Semaphore)]
        self._semaphores = [one for one in semaphores if one._value == 1]

    def releases(self) -> int:
        """How often a lock has become free."""
        return sum(lock.releases for lock in self._locks)

    def is_held(self) -> bool:
        return any(lock.locked() for lock in self._locks) or any(one._value == 0 for one in self._semaphores)


class Watch:
    """changes: what changed, and the lines that changed it, each once and in order."""

    def __init__(self, model: nn.Module, everywhere: Sequence[Owner], guard: Guard) -> None:
        self.changes: list[Finding] = []
        self.guard = guard
        self._model = model
        self._everywhere = everywhere
        guard.know(model)
        holders = shared_state.reached(model)
        modules = [(path, one) for path, one in holders if isinstance(one, nn.Module)]
        self._held = {id(one): shared_state.holder_owner(path, one) for path, one in holders}
        self._classes = {id(one): shared_state.class_owner(path, one) for path, one in modules}
        self._of_module = {id(one): self._owners_of(one) for _, one in modules}
        self._weights = [shared_state.weights_owner(path, one) for path, one in modules]
        self._hooks: dict[CodeType | None, str] = {}  # the module of each
        self._functions: dict[CodeType | None, list[Owner]] = defaultdict(list)
        self._globals: dict[CodeType, Owner] = {}
        for path, module in modules:
            self._know_functions(path, module)

    def _owners_of(self, module: nn.Module) -> list[Owner]:
        """A module may write on those it contains: on all of them, or where there are many, the nearest."""
        below = [one for one in module.modules() if one is not module]
        nearest = below if len(below) <= FEW else list(module.children())
        if isinstance(module, nn.Sequential):  # many children, and it writes on none
            nearest = []
        return [*(self._held[id(one)] for one in (module, *nearest)), self._classes[id(module)]]

    def _know_functions(self, path: str, module: nn.Module) -> None:
        """What its hooks, and methods with variables around them, keep outside of the module."""
        of_model = {id(one) for one in self._model.modules()}
        for hook in shared_state.hooks(module):
            code = code_of(hook)
            self._hooks.setdefault(code, path)
            self._functions[code].append(shared_state.function_owner(path, hook, Kind.HOOK, of_model))
        for method in shared_state.functions_with_variables(module):
            owner = shared_state.function_owner(path, method, Kind.OUTSIDE)
            self._functions[method.__code__].append(owner)

    def call(self, work: Callable[[], Any]) -> Any:
        """Do the work, watched. What watched the thread before (a debugger, coverage) is put back."""
        before = sys.gettrace()
        everything = [*self._held.values(), *self._classes.values(), *self._everywhere, *self._weights]
        with tqdm(desc="functions watched", unit="", leave=False, delay=1) as self._bar:
            sys.settrace(self._enter)
            try:
                result = work()
            finally:
                sys.settrace(before)
        # What no watched line explains is laid to the model's forward as a whole.
        forward = code_of(inspect.getattr_static(self._model, "forward", None)) or _UNKNOWN
        self.compare(everything, forward, forward.co_firstlineno, guarded=False)
        return result

    def _enter(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename == _MACHINERY:
            return None
        self._bar.update()
        module = self._module_of(frame)
        owners = self._owners(frame, module)
        rewritten = {} if module is None else rewritten_attributes(frame.f_code)
        return _Frame(self, frame, owners, rewritten) if owners else None

    def _module_of(self, frame: FrameType) -> Any:
        """Of a method the module it belongs to; of a function in a method, too."""
        code = frame.f_code
        given = frame.f_locals.get(code.co_varnames[0] if code.co_argcount else "self")
        return given if isinstance(given, nn.Module) and id(given) in self._held else None

    def _owners(self, frame: FrameType, module: nn.Module | None) -> list[Owner]:
        """Whose things the function of this frame may change."""
        code = frame.f_code
        own = [] if module is None else self._of_module[id(module)]
        if code not in self._hooks and not is_yours(code, frame.f_globals):
            return [*own, *self._everywhere] if own else []
        path, kind = own[0].path if own else "", Kind.OUTSIDE
        if code in self._hooks:
            path, kind = self._hooks[code], Kind.HOOK
        if code not in self._globals:
            self._globals[code] = shared_state.globals_owner(path, code, frame.f_globals, kind)
        given = dict.fromkeys(id(one) for one in _given(frame) if id(one) in self._held and one is not module)
        around = [self._globals[code], *self._functions[code], *(self._held[one] for one in given)]
        return [*own, *around, *self._everywhere]

    def compare(self, owners: Sequence[Owner], code: CodeType, line: int, guarded: bool) -> None:
        """Note what looks different now, as changed by this line."""
        for owner in owners:
            for kind, name in owner.changes():
                self.note(kind, owner.path, name, code, line, guarded)

    def note(self, kind: Kind, path: str, name: str, code: CodeType, line: int, guarded: bool) -> None:
        change = Finding(kind, path, name, kind.cure, code, line, guarded)
        if change not in self.changes:
            self.changes.append(change)


class _Frame:
    """Follows one frame: compares after each of its lines.

    Each frame keeps its own count of released locks: `with lock: ...` is over at the end of a line, also when
    it stands in a function which that line calls.
    """

    def __init__(self, watch: Watch, frame: FrameType, owners: Sequence[Owner], rewritten: _Lines) -> None:
        self._watch = watch
        self._owners = owners  # where something may be rewritten, its module is the first
        self._rewritten = rewritten
        self._line = frame.f_lineno
        self._releases = watch.guard.releases()

    def __call__(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        if event in ("line", "return"):
            before, self._releases = self._releases, self._watch.guard.releases()
            guarded = self._releases > before or self._watch.guard.is_held()
            self._watch.compare(self._owners, frame.f_code, self._line, guarded)
            for name in self._rewritten.get(self._line, ()):
                path = self._owners[0].path
                self._watch.note(Kind.REWRITTEN, path, name, frame.f_code, self._line, guarded)
            self._line = frame.f_lineno
        return self


@functools.cache
def rewritten_attributes(code: CodeType) -> _Lines:
    """The attributes of `self` that a method assigns, by line; also where the value stays the same."""
    found: dict[int, tuple[str, ...]] = {}
    instructions = [one for one in dis.get_instructions(code) if one.opname not in ("CACHE", "EXTENDED_ARG")]
    for before, one in pairwise(instructions):
        # Two variables are loaded at once from Python 3.13 on.
        loaded = before.argval if isinstance(before.argval, tuple) else (before.argval,)
        is_self = "LOAD_FAST" in before.opname and loaded[-1] == "self"
        line = one.positions.lineno if one.positions else None
        if one.opname == "STORE_ATTR" and is_self and line:
            found[line] = (*found.get(line, ()), str(one.argval))
    return found


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
