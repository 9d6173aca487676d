"""The learner's own server: what they wrote in exercises, kept part by part.

A part is one file with one class or function in `my-lessons/my_server/`. It is kept only when it passes the
check of its exercise, as it stands in that file, away from the notebook. docs/your-own-server.md says what a
part is given and has to do. Knows nothing about how a server is put together from them.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import linecache
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from servelab.lab.exercises.form import Result, Verdict
from servelab.lab.files import put_aside, write_whole
from servelab.lab.lessons import COPIES

FOLDER = COPIES / "my_server"


@dataclass(frozen=True, slots=True)
class Part:
    """What a server needs. check: `module:function` of the exercise, empty until its lesson is written."""

    name: str
    what: str
    lesson: str
    check: str = ""


PARTS = (
    Part("token_loop", "the token loop", "01", "one_token_at_a_time:check_token_loop"),
    Part("queue_policy", "the queue and its policy", "02", "queue_and_concurrency_limit:check_queue_policy"),
    Part("worker", "the task that hands over", "03", "cooperative_multitasking:check_worker"),
    Part("batching_plan", "the batching plan", "04", "static_and_continuous_batching:check_batching_plan"),
    Part("block_table", "the block table", "05", "kv_cache_memory:check_block_table"),
    Part("web_app", "the HTTP door", "12"),
)


class CannotBeKept(Exception):
    """Why something is no part that stands alone; the message says what to do next."""


def keep(name: str, thing: type | FunctionType, folder: Path = FOLDER) -> Result:
    """Keep a class or function as a part of your own server, if it passes the check of its exercise.

    name: of the part, as in `PARTS`. What was kept before under that name stays beside it, with its date.
    """
    part = next((one for one in PARTS if one.name == name and one.check), None)
    if part is None:
        known = ", ".join(one.name for one in PARTS if one.check)
        return Result(Verdict.NOT_YET, f"There is no part {name!r} to keep: name one of {known}.")
    try:
        text = _file_text(part, thing)
        result = _check(part)(_loaded(text, part.name))
    except CannotBeKept as problem:
        return Result(Verdict.NOT_YET, f"Nothing is kept: {problem}")
    if result.verdict is not Verdict.PASSED:
        return Result(result.verdict, f"Nothing is kept yet. {result.seen}")
    _write(text, folder / f"{part.name}.py")
    return Result(
        Verdict.PASSED, f"Kept as {folder.parent.name}/{folder.name}/{part.name}.py. {_state(folder)}"
    )


def _state(folder: Path) -> str:
    mine = [part.what for part in PARTS if (folder / f"{part.name}.py").exists()]
    return f"Your server has {len(mine)} of its {len(PARTS)} parts: {', '.join(mine)}."


def _check(part: Part) -> Any:
    module, function = part.check.split(":")
    return getattr(importlib.import_module(f"servelab.lab.exercises.{module}"), function)


def _write(text: str, file: Path) -> None:
    if file.exists() and file.read_text(encoding="utf-8") != text:
        put_aside(file)
    write_whole(file, text)


# From a notebook's cell to a file


def _file_text(part: Part, thing: type | FunctionType) -> str:
    """The text of a file that holds nothing but this class or function and the imports it needs."""
    function = _function(thing)
    lines = linecache.getlines(function.__code__.co_filename)
    definition = _definition("".join(lines), thing.__name__)
    first = min([definition.lineno, *(decorator.lineno for decorator in definition.decorator_list)])
    body = "".join(lines[first - 1 : definition.end_lineno]).rstrip()
    head = f'"""Part of my own server: {part.what} (lesson {part.lesson}), kept on {date.today()}."""'
    imports = "\n".join(_imports(definition, function.__globals__))
    return "\n\n".join(piece for piece in (head, imports, f"\n{body}\n" if imports else f"{body}\n") if piece)


def _function(thing: type | FunctionType) -> FunctionType:
    """It, or for a class one of its methods."""
    inside = vars(thing).values() if isinstance(thing, type) else [thing]
    functions = [one for one in inside if isinstance(one, FunctionType)]
    if not functions:
        raise CannotBeKept(f"a part is one class or one function, and this is {thing!r}.")
    return functions[0]


def _definition(cell: str, name: str) -> ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [one for one in ast.parse(cell).body if isinstance(one, kinds) and one.name == name]
    if not found:
        raise CannotBeKept(
            f"the source of {name} was not found: write it in a cell, not indented, and run that."
        )
    return found[-1]


def _imports(definition: ast.AST, world: dict[str, Any]) -> list[str]:
    """The imports without which a definition would not work in a file of its own."""
    names = [node for node in ast.walk(definition) if isinstance(node, ast.Name)]
    own = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    own |= {node.arg for node in ast.walk(definition) if isinstance(node, ast.arg)}
    own |= {str(getattr(definition, "name", ""))}
    used = sorted({node.id for node in names} - own - set(vars(builtins)))
    return [_import(name, world[name]) for name in used if name in world]


def _import(name: str, value: Any) -> str:
    if isinstance(value, ModuleType):
        return f"import {value.__name__}" if value.__name__ == name else f"import {value.__name__} as {name}"
    module, inside = getattr(value, "__module__", None), getattr(value, "__name__", name)
    if module in (None, "__main__", "builtins"):
        raise CannotBeKept(f"it uses {name}, which stands outside of it: put that inside.")
    return f"from {module} import {inside}" + ("" if inside == name else f" as {name}")


def _loaded(text: str, name: str) -> Any:
    """The class or function of such a file, as a server would load it."""
    module = ModuleType(f"my_{name}")
    file = f"<my_server/{name}.py>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    exec(compile(text, file, "exec"), vars(module))
    found = [one for one in vars(module).values() if getattr(one, "__module__", None) == module.__name__]
    return found[-1]
