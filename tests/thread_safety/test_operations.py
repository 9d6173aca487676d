"""Each operation that another thread could notice is a point of its own, on every Python."""

import copyreg
import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from servelab.thread_safety import CriticalSection, explore, specimens
from servelab.thread_safety.auditing.watching import rewritten_attributes
from servelab.thread_safety.explorer.operations import operations
from servelab.thread_safety.explorer.user_code import is_yours


class Holder:
    """An object with these attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


MODULE = types.ModuleType("somewhere_else")
GLOBAL = 0


def outcomes(build: Callable[[], Any], *tasks: Callable[[Any], Any], switches: int | None = None) -> set[Any]:
    """What the tasks return, in all interleavings; an error counts as its name."""
    seen = set()
    section = CriticalSection(build, tasks, lambda shared, results: seen.add(tuple(results)))
    found = explore(section, switches=switches, progress=False)
    assert found.complete
    return seen | {one.why.split(":")[1].strip() for one in found.broken}


# Tests, reads and writes of one thread, while another changes what is shared: (0 before it, 1 after).


def append(items: list[int]) -> None:
    items.append(1)


def add_key(items: dict[str, int]) -> None:
    items["k"] = 1


def set_two(holder: Any) -> None:
    holder.n = 2


def not_of(items: list[int]) -> int:
    return int(bool(items))


def or_of(items: list[int]) -> int:
    return len(items or [])


def and_of(items: list[int]) -> int:
    return len(items and [1])


def conditional(items: list[int]) -> int:
    return 1 if items else 0


def branch(items: list[int]) -> int:
    if items:
        return 1
    return 0


def asserted(items: list[int]) -> int:
    try:
        assert items
    except AssertionError:
        return 0
    return 1


def membership(items: list[int]) -> int:
    return int(1 in items)


def equality(items: list[int]) -> int:
    return int(items == [1])


def sliced(items: list[int]) -> int:
    return len(items[:1])


def starred(items: list[int]) -> int:
    return len((*items,))


def formatted(items: list[int]) -> int:
    return int(f"{items}" == "[1]")


def looped(items: list[int]) -> int:
    count = 0
    for _ in items:
        count += 1
    return count


def comprehended(items: list[int]) -> int:
    return len([one for one in items])  # noqa: C416


def delegated(items: list[int]) -> int:
    def all_of_them() -> Any:
        yield from items

    return len(tuple(all_of_them()))


def deleted(items: list[int]) -> int:
    try:
        del items[0]
    except IndexError:
        return 0
    return 1


def matched(items: list[int]) -> int:
    match items:
        case [_]:
            return 1
    return 0


def length(items: list[int]) -> int:
    return len(items)


@pytest.mark.parametrize(
    "task",
    [
        not_of, or_of, and_of, conditional, branch, asserted, membership, equality, sliced, starred,
        formatted, looped, comprehended, delegated, deleted, matched, length,
    ],
)  # fmt: skip
def test_whoever_looks_at_a_list_sees_it_before_and_after(task: Callable[[Any], int]) -> None:
    assert outcomes(list, task, append) == {(0, None), (1, None)}


def key(items: dict[str, int]) -> int:
    return items.get("k", 0)


def subscript(items: dict[str, int]) -> int:
    try:
        return items["k"]
    except KeyError:
        return 0


def merged(items: dict[str, int]) -> int:
    return len({**items})


def as_keywords(items: dict[str, int]) -> int:
    return len(dict(**items))


def pattern(items: dict[str, int]) -> int:
    match items:
        case {"k": one}:
            return one
    return 0


@pytest.mark.parametrize("task", [key, subscript, merged, as_keywords, pattern])
def test_whoever_looks_at_a_dict_sees_it_before_and_after(task: Callable[[Any], int]) -> None:
    assert outcomes(dict, task, add_key) == {(0, None), (1, None)}


def test_looking_twice_can_give_two_answers() -> None:
    def twice(items: list[int]) -> tuple[int, bool]:
        return len(items), not items

    assert outcomes(list, twice, append) == {((0, True), None), ((0, False), None), ((1, False), None)}


def test_each_sign_before_a_number_reads_it_again() -> None:
    def signs(holder: Any) -> tuple[int, int]:
        return -holder.n, ~holder.n

    seen = {((-1, -2), None), ((-1, -3), None), ((-2, -3), None)}
    assert outcomes(lambda: Holder(n=1), signs, set_two) == seen


def test_an_unpacking_is_one_operation_and_two_reads_are_two() -> None:
    def unpack(items: list[int]) -> tuple[int, int]:
        one, other = items
        return one, other

    def two_reads(items: list[int]) -> tuple[int, int]:
        return items[0], items[1]

    def replace(items: list[int]) -> None:
        items[:] = [1, 1]

    whole = {((0, 0), None), ((1, 1), None)}
    assert outcomes(lambda: [0, 0], unpack, replace) == whole
    assert outcomes(lambda: [0, 0], two_reads, replace) == {*whole, ((0, 1), None)}


def test_a_loop_can_be_held_between_two_entries() -> None:
    def last_two(items: list[int]) -> tuple[int, int]:
        last = before = 7
        for one in items:
            before, last = last, one  # nothing that others could notice
        return before, last

    def set_both(items: list[int]) -> None:
        items[0] = 1
        items[1] = 1

    seen = {((0, 0), None), ((1, 0), None), ((1, 1), None), ((0, 1), None)}
    assert outcomes(lambda: [0, 0], last_two, set_both) == seen


def test_an_attribute_may_be_gone() -> None:
    def read(holder: Any) -> int:
        return holder.n

    def delete(holder: Any) -> None:
        del holder.n

    assert outcomes(lambda: Holder(n=1), read, delete) == {(1, None), "AttributeError"}


def test_a_loop_over_a_dict_may_meet_a_new_key() -> None:
    def walk(items: dict[str, int]) -> int:
        return sum(items[one] for one in items)

    assert "RuntimeError" in outcomes(lambda: {"a": 1}, walk, add_key)


# Races between a read and a write of the same thing.


def in_attribute(holder: Any) -> None:
    holder.n += 1


def in_entry(items: dict[str, int]) -> None:
    items["n"] += 1


def in_global(_: Any) -> None:
    global GLOBAL
    GLOBAL += 1


def in_module(_: Any) -> None:
    MODULE.n += 1


def with_functions(holder: Any) -> None:
    setattr(holder, "n", getattr(holder, "n") + 1)  # noqa: B009, B010


def in_comprehension(holder: Any) -> None:
    (holder.n,) = [one + 1 for one in (holder.n,)]


def in_inner_function(holder: Any) -> None:
    def add() -> None:
        holder.n += 1

    add()


def test_lost_updates_wherever_the_number_is_kept() -> None:
    kept: list[tuple[Callable[[], Any], Callable[[Any], None], Callable[[Any], int]]] = [
        (lambda: Holder(n=0), in_attribute, lambda holder: holder.n),
        (lambda: Holder(n=0), with_functions, lambda holder: holder.n),
        (lambda: Holder(n=0), in_comprehension, lambda holder: holder.n),
        (lambda: Holder(n=0), in_inner_function, lambda holder: holder.n),
        (lambda: {"n": 0}, in_entry, lambda items: items["n"]),
        (lambda: globals().update(GLOBAL=0), in_global, lambda _: GLOBAL),
        (lambda: setattr(MODULE, "n", 0), in_module, lambda _: MODULE.n),
    ]
    for build, task, read in kept:
        seen = set()
        section = CriticalSection(build, [task, task], lambda shared, _, r=read, s=seen: s.add(r(shared)))
        assert explore(section, switches=2, progress=False).complete  # one is enough to lose an update
        assert seen == {1, 2}, task.__name__


def test_a_lost_update_of_a_variable_around_a_function() -> None:
    n, seen = 0, set()

    def begin() -> None:
        nonlocal n
        n = 0

    def add(_: Any) -> None:
        nonlocal n
        n += 1

    explore(CriticalSection(begin, [add, add], lambda *_: seen.add(n)), progress=False)
    assert seen == {1, 2}


def test_asking_first_does_not_help() -> None:
    def pop_if_there(holder: Any) -> int | None:
        if not holder.items:
            return None
        return holder.items.pop()

    def make_if_missing(holder: Any) -> int:
        if holder.made is None:
            holder.made = []
        holder.made.append(1)
        return len(holder.made)

    assert outcomes(lambda: Holder(items=[7]), pop_if_there, pop_if_there) == {
        (7, None), (None, 7), "IndexError",
    }  # fmt: skip
    assert (1, 1) in outcomes(lambda: Holder(made=None), make_if_missing, make_if_missing, switches=2)


def test_a_variable_of_a_module_is_read_when_it_is_used() -> None:
    def first(_: Any) -> bool:
        if MODULE.taken:
            return False
        MODULE.taken = True
        return True

    tried = outcomes(lambda: setattr(MODULE, "taken", False), first, first)
    assert tried == {(True, False), (False, True), (True, True)}


# What nobody else can notice is no point.


def said(function: Callable[..., Any]) -> list[str]:
    return [str(one) for one in operations(function.__code__, function.__globals__).values()]


def only_its_own(x: int) -> list[int]:
    """Local variables, constants, and what is done with them."""
    kept = [x, 2]
    if x is None:
        return kept
    while x is not None:
        x = None  # type: ignore[assignment]
    return kept


def names_of_things(x: float) -> Any:
    return Holder, append, math, len


def constants(x: Any) -> Any:
    return math.pi, torch.float32, copyreg.dispatch_table


def test_locals_functions_classes_modules_and_constants_of_libraries_are_no_points() -> None:
    for function in (only_its_own, names_of_things, constants):
        assert said(function) == []


def test_an_operation_says_what_it_does_to_which_piece_of_source() -> None:
    assert said(in_attribute) == ["read holder.n", "compute holder.n += 1", "write holder.n"]
    assert said(append)[-1] == "call items.append(1)"
    (test,) = said(branch)
    assert test.startswith("test ")
    assert "items" in test
    found = operations(in_attribute.__code__, globals())
    (line,) = {one.line for one in found.values()}
    assert Path(__file__).read_text(encoding="utf-8").splitlines()[line - 1].strip() == "holder.n += 1"
    assert {one.file for one in found.values()} == {Path(__file__).name}


def test_code_without_source_still_has_names() -> None:
    names: dict[str, Any] = {}
    exec("def add(holder):\n    holder.n += 1\n", names)
    assert said(names["add"])[0] == "read n"


def test_a_global_counts_when_it_is_a_plain_variable() -> None:
    assert said(in_global) == ["read GLOBAL", "compute GLOBAL += 1", "write GLOBAL"]


def test_the_return_is_a_point_where_it_is_asked_for() -> None:
    def plain() -> int:
        return 1

    assert not operations(plain.__code__, globals())
    assert [one.verb for one in operations(plain.__code__, globals(), with_return=True).values()] == [
        "return"
    ]


# Whose code it is.


def test_yours_are_this_file_and_specimens_but_no_libraries() -> None:
    counter = specimens.named("counter").build()
    assert is_yours(append.__code__, globals())
    assert is_yours(type(counter).forward.__code__, vars(specimens))
    for function in (torch.nn.Linear.forward, Path.exists, explore, pytest.raises):
        assert not is_yours(function.__code__, function.__globals__)


def test_libraries_are_libraries_wherever_they_are_installed() -> None:
    for folder in ("/home/me/.local/lib/python3.12/site-packages", "/usr/lib/python3/dist-packages"):
        code = compile("1", f"{folder}/torch/nn/modules/linear.py", "eval")
        assert not is_yours(code, {})
    assert is_yours(compile("1", "/home/me/packages/linear.py", "eval"), {})


def test_code_made_from_a_string_belongs_to_whoever_made_it() -> None:
    code = compile("1", "<string>", "eval")
    assert is_yours(code, {"__file__": __file__})
    assert not is_yours(code, vars(torch))
    assert is_yours(code, {})  # typed at a prompt
    assert not is_yours(compile("1", "<frozen importlib>", "eval"), {})


def test_attributes_that_a_method_assigns_by_line() -> None:
    class Layer:
        def forward(self, x: int) -> int:
            self.kept = x
            self.kept, self.other = x, x
            x.kept = 1
            return self.kept

    first = Layer.forward.__code__.co_firstlineno
    assert rewritten_attributes(Layer.forward.__code__) == {
        first + 1: ("kept",),
        first + 2: ("kept", "other"),
    }
