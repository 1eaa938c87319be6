"""What decides the machine code of one of our kernels: its own text and that of all it calls, and its plan.

Two kernels of one identity compile to the same code, so one of them is compiled. Comments, other kernels and
the documentation around them do not count. Works with and without Triton's interpreter.

    identity(plan)      text, to be hashed
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.triton.plan import Plan

OURS = "kernels"
COMMENT = re.compile(r"(^|\s)\s*#.*$", re.MULTILINE)
INTERPRETER = "INTERPRETED"  # a constant that is another one where nothing is compiled
CONSTANTS = (int, float, str, tuple)


def identity(plan: Plan) -> str:
    """The text of a plan's function and of what it calls, its types, constants and options.

    A batch that fills its tiles only moves addresses: it does not count.
    """
    constants = dict(plan.constexprs)
    batch, rows = constants.get("BATCH"), constants.get("BLOCK_B")
    if isinstance(batch, int) and isinstance(rows, int) and batch % rows == 0:
        del constants["BATCH"]
    given = (dict(plan.signature), constants, dict(plan.options))
    return source(plain(plan.fn)) + json.dumps(given, sort_keys=True, default=repr)


@cache
def source(function: FunctionType) -> str:
    """The text of a function and of everything of ours that it reaches, in order of first use."""
    return "\n".join(_reached(function, set()))


def plain(value: Any) -> Any:
    """The Python function behind what Triton made of it; other values as they are."""
    inner = getattr(value, "fn", None)
    return inner if isinstance(inner, FunctionType) else value


def _reached(function: FunctionType, seen: set[FunctionType]) -> Iterator[str]:
    if function in seen:
        return
    seen.add(function)
    yield COMMENT.sub("", inspect.getsource(function))
    names = sorted(_names(function.__code__))
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType):
            if value.__name__.split(".")[0] == OURS:
                for attribute in names:
                    yield from _value(attribute, getattr(value, attribute, None), seen)
        else:
            yield from _value(name, value, seen)


def _value(name: str, value: Any, seen: set[FunctionType]) -> Iterator[str]:
    """What one name adds: the text of a function of ours, or a constant."""
    value = plain(value)
    if isinstance(value, FunctionType):
        if value.__module__.split(".")[0] == OURS:
            yield from _reached(value, seen)
        return
    value = getattr(value, "value", value)  # of tl.constexpr
    if isinstance(value, CONSTANTS) and name != INTERPRETER:
        yield f"{name} = {value!r}"


def _names(code: CodeType) -> set[str]:
    """Every name that a function reads, those of functions within it too."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))
