"""Small random programs for threads that share registers, and their outcomes by brute force.

Nothing of the library under test is used here. A program is a list of commands; as source it is compiled,
and as a list of elementary steps it is run in every order by going through all states there can be.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

REGISTERS = ("a", "b")
LOCALS = ("x", "y")


@dataclass(frozen=True)
class Command:
    """One line of a program. kind: read, write, increment or raise_to; locked: under the one lock."""

    kind: str
    register: str
    local: str = "x"
    constant: int | None = None
    locked: bool = False

    def source(self) -> list[str]:
        """Python, with the registers as attributes of `s`."""
        s, x = f"s.{self.register}", self.local
        lines = {
            "read": [f"{x} = {s}"],
            "write": [f"{s} = {x if self.constant is None else self.constant}"],
            "increment": [f"{s} += 1"],
            "raise_to": [f"if {s} < {self.constant}:", f"    {s} = {self.constant}"],
        }[self.kind]
        return ["with s.lock:", *(f"    {line}" for line in lines)] if self.locked else lines

    def steps(self) -> list[tuple[Any, ...]]:
        """What can be seen of it by others, in order."""
        target = self.register
        inside: list[tuple[Any, ...]] = {
            "read": [("read", target, self.local)],
            "write": [("write", target, self.local if self.constant is None else self.constant)],
            "increment": [("read", target, "new"), ("write plus one", target)],
            "raise_to": [("read", target, "new"), ("write if less", target, self.constant)],
        }[self.kind]
        return [("acquire",), *inside, ("release",)] if self.locked else inside


Program = tuple[Command, ...]


def compiled(program: Program) -> Callable[[Any], tuple[int, ...]]:
    lines = [f"{x} = 0" for x in LOCALS] + [line for one in program for line in one.source()]
    source = "\n    ".join(["def task(s):", *lines, f"return {', '.join(LOCALS)}"])
    names: dict[str, Any] = {}
    exec(source, names)
    task: Callable[[Any], tuple[int, ...]] = names["task"]
    return task


class Registers:
    """What the threads share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        for name in REGISTERS:
            setattr(self, name, 0)


@dataclass(frozen=True)
class _State:
    """places: the step of each thread; locals of each; registers; who holds the lock."""

    places: tuple[int, ...]
    variables: tuple[tuple[tuple[str, int], ...], ...]
    registers: tuple[int, ...]
    holder: int | None = None


Outcome = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]  # registers, and each thread's locals


def outcomes(programs: tuple[Program, ...]) -> set[Outcome]:
    """By going through every state that can be reached."""
    steps = [[step for one in program for step in one.steps()] for program in programs]
    start = tuple((name, 0) for name in (*LOCALS, "new"))
    first = _State((0,) * len(programs), (start,) * len(programs), (0,) * len(REGISTERS))
    seen, waiting, found = {first}, [first], set()
    while waiting:
        state = waiting.pop()
        following = list(_following(state, steps))
        if not following:
            locals_ = tuple(tuple(dict(one)[x] for x in LOCALS) for one in state.variables)
            found.add((state.registers, locals_))
        for one in following:
            if one not in seen:
                seen.add(one)
                waiting.append(one)
    return found


def _following(state: _State, steps: list[list[tuple[Any, ...]]]) -> Iterator[_State]:
    for thread, place in enumerate(state.places):
        if place < len(steps[thread]):
            after = _after(state, thread, steps[thread][place])
            if after is not None:
                yield after


def _after(state: _State, thread: int, step: tuple[Any, ...]) -> _State | None:
    """None: the thread has to wait."""
    variables, registers = dict(state.variables[thread]), dict(zip(REGISTERS, state.registers, strict=True))
    holder = state.holder
    match step:
        case ("acquire",):
            if holder is not None:
                return None
            holder = thread
        case ("release",):
            holder = None
        case ("read", register, local):
            variables[local] = registers[register]
        case ("write", register, value):
            registers[register] = variables[value] if isinstance(value, str) else value
        case ("write plus one", register):
            registers[register] = variables["new"] + 1
        case ("write if less", register, limit) if variables["new"] < limit:
            registers[register] = limit
    places = tuple(place + (number == thread) for number, place in enumerate(state.places))
    all_variables = tuple(
        tuple(variables.items()) if number == thread else one for number, one in enumerate(state.variables)
    )
    return _State(places, all_variables, tuple(registers.values()), holder)


def programs(most: int) -> st.SearchStrategy[Program]:
    """Of one to so many commands."""
    commands = st.one_of(
        st.builds(Command, st.just("read"), _registers, _locals, locked=_locked),
        st.builds(Command, st.just("write"), _registers, _locals, locked=_locked),
        st.builds(Command, st.just("write"), _registers, constant=st.integers(0, 3), locked=_locked),
        st.builds(Command, st.just("increment"), _registers, locked=_locked),
        st.builds(Command, st.just("raise_to"), _registers, constant=st.integers(1, 3), locked=_locked),
    )
    return st.lists(commands, min_size=1, max_size=most).map(tuple)


_registers, _locals, _locked = st.sampled_from(REGISTERS), st.sampled_from(LOCALS), st.booleans()
