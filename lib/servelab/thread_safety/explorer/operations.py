"""Where a Python function touches what other threads may touch too.

Between two such operations nothing happens that another thread could notice, so only before each of them
does it matter who runs. Reads compiled code and nothing else; each release of Python compiles a little
differently, so operations are counted the same way only on the same minor version.
"""

from __future__ import annotations

import dis
import linecache
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from servelab.thread_safety.explorer.user_code import is_file_of_yours

# What works on a thread's own variables, on its stack, or on constants, or only says what comes next.
_PRIVATE = (
    "RESUME", "CACHE", "NOP", "NOT_TAKEN", "PRECALL", "KW_NAMES", "PUSH_NULL", "POP_TOP", "POP_ITER",
    "END_FOR", "COPY", "SWAP", "EXTENDED_ARG", "LOAD_CONST", "LOAD_SMALL_INT", "LOAD_COMMON_CONSTANT",
    "LOAD_FAST", "STORE_FAST", "DELETE_FAST", "LOAD_CLOSURE", "MAKE_CELL", "MAKE_FUNCTION",
    "SET_FUNCTION_ATTRIBUTE", "COPY_FREE_VARS", "RETURN", "YIELD", "JUMP_FORWARD", "JUMP_BACKWARD",
    "POP_JUMP_IF_NONE", "POP_JUMP_IF_NOT_NONE", "POP_JUMP_FORWARD_IF_NONE", "POP_JUMP_FORWARD_IF_NOT_NONE",
    "POP_JUMP_BACKWARD_IF_N", "IS_OP", "BUILD_", "LIST_APPEND", "SET_ADD", "MAP_ADD", "LIST_TO_TUPLE",
    "LOAD_BUILD_CLASS", "PUSH_EXC_INFO", "CHECK_EXC", "RERAISE", "POP_EXCEPT", "LOAD_ASSERTION_ERROR",
    "CALL_INTRINSIC", "INTERPRETER_EXIT", "ASYNC_GEN_WRAP", "LOAD_SPECIAL",
)  # fmt: skip
_VERBS = {
    "RETURN": "return", "LOAD": "read", "STORE": "write", "DELETE": "delete", "CALL": "call",
    "COMPARE": "compare", "CONTAINS": "look in", "FOR": "next of", "GET": "iterate", "TO": "test",
    "POP": "test", "JUMP": "test", "BEFORE": "enter", "WITH": "leave", "UNPACK": "unpack",
}  # fmt: skip
_BESIDE = ("CACHE", "PRECALL", "EXTENDED_ARG")  # belong to the instruction beside them
_ANSWERS = ("COMPARE_OP", "CONTAINS_OP", "IS_OP", "UNARY_NOT", "TO_BOOL")  # leave a bool of the thread's own
_TESTS = ("POP_JUMP", "JUMP_IF", "UNARY_NOT")  # ask whether something is true: a container may be shared


@dataclass(frozen=True, slots=True)
class Operation:
    """verb: read, write, call … text: the piece of source it works on. file: its name without folders."""

    verb: str
    text: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.verb} {self.text}"


def operations(code: CodeType, names: Mapping[str, Any], with_return: bool = False) -> dict[int, Operation]:
    """The operations of a function by the offset of their instruction; `names`: its globals.

    with_return: also the return, before which everything the function did can be seen.
    """
    found: dict[int, Operation] = {}
    before: list[dis.Instruction] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname in _BESIDE:
            continue
        is_return = with_return and instruction.opname.startswith("RETURN")
        if is_return or not _is_private(instruction, before, names):
            found[instruction.offset] = _described(code, instruction, before)
        before.append(instruction)
    return found


def _is_private(one: dis.Instruction, before: list[dis.Instruction], names: Mapping[str, Any]) -> bool:
    """Whether no other thread can notice it."""
    opcode = one.opname
    last = before[-1] if before else None
    if opcode.startswith(_PRIVATE):
        return True
    if opcode in ("LOAD_GLOBAL", "LOAD_NAME"):
        return _stays(_value(str(one.argval), names))
    if opcode in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
        return bool(one.argval == "__class__")
    if last is not None and opcode in ("LOAD_ATTR", "LOAD_METHOD"):
        return last.opname == "LOAD_GLOBAL" and _stays_in(_value(str(last.argval), names), str(one.argval))
    return last is not None and opcode.startswith(_TESTS) and last.opname in _ANSWERS


def _value(name: str, names: Mapping[str, Any]) -> Any:
    """What a global name stands for."""
    builtins = names.get("__builtins__", {})
    builtins = builtins if isinstance(builtins, dict) else vars(builtins)
    return names[name] if name in names else builtins.get(name)


def _stays(value: Any) -> bool:
    """Functions, classes and modules are given their names once; nobody waits for another to rename them."""
    return isinstance(value, ModuleType | FunctionType | BuiltinFunctionType | type)


def _stays_in(module: Any, name: str) -> bool:
    """As above; and what a library's module has is taken for a constant, such as `torch.float32`."""
    if not isinstance(module, ModuleType):
        return False
    inside = vars(module)
    file = inside.get("__file__")
    library = inside.get("__spec__") is not None and (file is None or not is_file_of_yours(file))
    return library or _stays(inside.get(name))


def _described(code: CodeType, one: dis.Instruction, before: list[dis.Instruction]) -> Operation:
    verb = _VERBS.get(one.opname.partition("_")[0], "compute")
    if one.opname.endswith("SUBSCR") and verb == "compute":
        verb = "read"
    if verb == "call" and [b.argval for b in before[-3:]] == [None] * 3:
        verb = "leave"  # the end of a `with` block calls __exit__(None, None, None)
    line = (one.positions.lineno if one.positions else None) or code.co_firstlineno
    return Operation(verb, _source(code, one), Path(code.co_filename).name, line)


def _source(code: CodeType, one: dis.Instruction) -> str:
    """The piece of source that an instruction was compiled from; its name where the source is not at hand."""
    at = one.positions
    line = linecache.getline(code.co_filename, at.lineno).encode() if at and at.lineno else b""
    if at is None or not line or at.col_offset is None or at.end_col_offset is None:
        return str(one.argrepr or one.opname)
    end = at.end_col_offset if at.end_lineno == at.lineno else len(line)
    return line[at.col_offset : end].decode(errors="replace").strip()
