"""Where a Python function touches what other threads may touch too.

Between two such operations nothing happens that another thread could notice, so only before each of them
does it matter who runs. Reads compiled code and nothing else; each release of Python compiles a little
differently, so operations are counted the same way only on the same minor version.
"""

from __future__ import annotations

import dis
import functools
import linecache
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import servelab

# What works on a thread's own variables, on its stack, or on constants, or only says what comes next.
_PRIVATE = (
    "RESUME", "CACHE", "NOP", "NOT_TAKEN", "PRECALL", "KW_NAMES", "PUSH_NULL", "POP_TOP", "POP_ITER",
    "END_FOR", "COPY", "SWAP", "EXTENDED_ARG", "LOAD_CONST", "LOAD_SMALL_INT", "LOAD_COMMON_CONSTANT",
    "LOAD_FAST", "STORE_FAST", "DELETE_FAST", "LOAD_CLOSURE", "MAKE_CELL", "MAKE_FUNCTION",
    "SET_FUNCTION_ATTRIBUTE",
    "COPY_FREE_VARS", "RETURN", "YIELD", "JUMP_FORWARD", "JUMP_BACKWARD", "POP_JUMP_IF_NONE",
    "POP_JUMP_IF_NOT_NONE",
    "POP_JUMP_FORWARD_IF_NONE", "POP_JUMP_FORWARD_IF_NOT_NONE", "POP_JUMP_BACKWARD_IF_N", "IS_OP", "BUILD_",
    "LIST_APPEND", "SET_ADD", "MAP_ADD", "LIST_TO_TUPLE", "LOAD_BUILD_CLASS", "PUSH_EXC_INFO", "CHECK_EXC",
    "RERAISE", "POP_EXCEPT", "LOAD_ASSERTION_ERROR", "CALL_INTRINSIC", "INTERPRETER_EXIT", "ASYNC_GEN_WRAP",
    "LOAD_SPECIAL",
)  # fmt: skip
_VERBS = {
    "RETURN": "return",
    "LOAD": "read",
    "STORE": "write",
    "DELETE": "delete",
    "CALL": "call",
    "COMPARE": "compare",
    "CONTAINS": "look in",
    "FOR": "next of",
    "GET": "iterate",
    "TO": "test",
    "POP": "test",
    "JUMP": "test",
    "BEFORE": "enter",
    "WITH": "leave",
    "UNPACK": "unpack",
}
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR")
_VARIABLES = ("STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF")
_ANSWERS = ("COMPARE_OP", "CONTAINS_OP", "IS_OP", "UNARY_NOT", "TO_BOOL")  # leave a bool of the thread's own
_TESTS = ("POP_JUMP", "JUMP_IF", "UNARY_NOT")  # ask whether something is true: a container may be shared


@dataclass(frozen=True, slots=True)
class Operation:
    """verb: read, write, call … text: the piece of source it works on. file: its name without folders.

    variable: the global variable, or that of a closure, which it reads or writes, if it does; or
    `Name.attribute` where it is about an attribute of a class, function or module.
    """

    verb: str
    text: str
    file: str
    line: int
    variable: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.text}"


def operations(code: CodeType, names: Mapping[str, Any], with_return: bool = False) -> dict[int, Operation]:
    """The operations of a function by the offset of their instruction; `names`: its globals.

    with_return: also the return, before which everything the function did can be seen.
    """
    found: dict[int, Operation] = {}
    before: list[dis.Instruction] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("CACHE", "PRECALL", "EXTENDED_ARG"):
            continue
        is_return = with_return and instruction.opname.startswith("RETURN")
        if is_return or not _is_private(instruction, before, names):
            variable = _variable(instruction, before, names)
            found[instruction.offset] = _described(code, instruction, before, variable)
        before.append(instruction)
    return found


def _is_private(one: dis.Instruction, before: list[dis.Instruction], names: Mapping[str, Any]) -> bool:
    opcode: str = one.opname
    if opcode.startswith(_PRIVATE):
        return True
    if one.opname == "LOAD_GLOBAL" or one.opname == "LOAD_NAME":
        return _stays(_value(str(one.argval), names))
    if one.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
        return bool(one.argval == "__class__")
    if not before:
        return False
    if one.opname in ("LOAD_ATTR", "LOAD_METHOD"):
        return before[-1].opname == "LOAD_GLOBAL" and _stays_in_module(
            _value(str(before[-1].argval), names), str(one.argval)
        )
    return opcode.startswith(_TESTS) and before[-1].opname in _ANSWERS


def _value(name: str, names: Mapping[str, Any]) -> Any:
    builtins = names.get("__builtins__", {})
    found = names.get(name, _MISSING)
    if found is not _MISSING:
        return found
    return builtins.get(name) if isinstance(builtins, dict) else getattr(builtins, name, None)


_MISSING = object()


def _stays(value: Any) -> bool:
    """Functions, classes and modules are given their names once; nobody waits for another to rename them."""
    return isinstance(value, ModuleType | FunctionType | BuiltinFunctionType | type)


def _stays_in_module(module: Any, name: str) -> bool:
    """As above; and what a library's module has is taken for a constant, such as `torch.float32`."""
    if not isinstance(module, ModuleType):
        return False
    inside = vars(module)
    file = inside.get("__file__")
    library = inside.get("__spec__") is not None and (file is None or not is_file_of_yours(file))
    return library or _stays(inside.get(name))


def _variable(one: dis.Instruction, before: list[dis.Instruction], names: Mapping[str, Any]) -> str:
    if one.opname in _VARIABLES:
        return str(one.argval)
    owner = next((other for other in reversed(before) if other.opname != "COPY"), None)
    if one.opname not in _ATTRIBUTES or owner is None or owner.opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
        return ""
    return f"{owner.argval}.{one.argval}" if _stays(_value(str(owner.argval), names)) else ""


def _described(
    code: CodeType, one: dis.Instruction, before: list[dis.Instruction], variable: str
) -> Operation:
    verb = _VERBS.get(one.opname.partition("_")[0], "compute")
    if one.opname.endswith("SUBSCR") and verb == "compute":
        verb = "read"
    if verb == "call" and [b.argval for b in before[-3:]] == [None] * 3:
        verb = "leave"  # the end of a `with` block calls __exit__(None, None, None)
    line = (one.positions.lineno if one.positions else None) or code.co_firstlineno
    return Operation(verb, _source(code, one), Path(code.co_filename).name, line, variable)


def _source(code: CodeType, one: dis.Instruction) -> str:
    """The piece of source that an instruction was compiled from; its name where the source is not at hand."""
    at = one.positions
    if at is None or at.lineno is None or at.col_offset is None or at.end_col_offset is None:
        return str(one.argrepr or one.opname)
    line = linecache.getline(code.co_filename, at.lineno).encode()
    if not line:
        return str(one.argrepr or one.opname)
    end = at.end_col_offset if at.end_lineno == at.lineno else len(line)
    return line[at.col_offset : end].decode(errors="replace").strip()


def rewritten_attributes(code: CodeType) -> dict[int, tuple[str, ...]]:
    """The attributes of `self` that a method assigns, by line; also where the value stays the same."""
    found: dict[int, tuple[str, ...]] = {}
    before = ""
    for one in dis.get_instructions(code):
        if one.opname == "STORE_ATTR" and before == "self" and one.positions and one.positions.lineno:
            line = one.positions.lineno
            found[line] = (*found.get(line, ()), str(one.argval))
        if one.opname not in ("CACHE", "EXTENDED_ARG"):
            # Two variables are loaded at once from Python 3.13 on.
            loaded = one.argval if isinstance(one.argval, tuple) else (one.argval,)
            before = str(loaded[-1]) if "LOAD_FAST" in one.opname else ""
    return found


_LIBRARIES = tuple(
    str(Path(path).resolve())
    for key, path in sysconfig.get_paths().items()
    if key in ("stdlib", "platstdlib", "purelib", "platlib")
)
_INSTALLED = {"site-packages", "dist-packages"}
_OURS = str(Path(servelab.__file__).parent.resolve())
_SPECIMENS = str(Path(__file__).parent.resolve() / "specimens")


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
    library = installed or str(path).startswith((*_LIBRARIES, _OURS))
    return str(path).startswith(_SPECIMENS) or not library


def is_class_of_yours(kind: type) -> bool:
    """Whether a class is the reader's: one made in a notebook has no file."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return kind.__module__ not in sys.builtin_module_names and (file is None or is_file_of_yours(file))
