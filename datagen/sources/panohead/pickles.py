"""Reads a pickle as a description of its instructions, without executing them.

A pickle is a program for a stack machine. This machine runs the stack but never looks up a name, calls, constructs or
imports anything: a global becomes a `Global`, a call becomes a `Call` that holds its arguments. What those mean is for
the reader of the description to decide, so there is nothing for a hostile file to reach.
"""

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedIOBase
from typing import IO, Any, cast

from manifests.errors import UserError

# A released checkpoint takes some 100,000; a file that asks for many more is a memory bomb.
MAX_STEPS = 1_000_000

_KEYS = (str, bytes, int, float, type(None))


@dataclass(eq=False, frozen=True, repr=False)
class Global:
    """A name that the pickle would import."""

    name: str


@dataclass(eq=False, repr=False)
class Call:
    """A call the pickle would make, the items it would set on the result, and the state it would give it."""

    function: Global
    arguments: tuple[Any, ...]
    items: dict[Any, Any] = field(default_factory=dict)
    state: Any = None


@dataclass(eq=False, frozen=True, repr=False)
class Persistent:
    """An object the pickle keeps elsewhere, by its id."""

    id: Any


class _Mark:
    """Where a list of arguments begins on the stack."""


def parse(
    stream: BufferedIOBase, allowed: Callable[[str], bool], inspect: Callable[[Call], object] = lambda call: None
) -> Any:
    """The object that the pickle at the stream's position describes; the stream is advanced past it.

    Every call is shown to `inspect` when it is met, whether or not the object holds it in the end.

    Raises:
        ValueError: not a pickle, cut off, too long, or naming a global that `allowed` refuses ("module.name").
    """
    machine = _Machine(allowed, inspect)
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
            if step == MAX_STEPS:
                raise Refused(f"a pickle of more than {MAX_STEPS:,} steps")
            if opcode.name in _PUSHED:
                machine.stack.append(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](machine, argument)
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                raise Refused(f"takes the pickle step {opcode.name}, which no checkpoint needs")
        return machine.pop()
    except Refused:
        raise
    except (ValueError, OverflowError, MemoryError, struct.error) as error:
        raise UserError(f"damaged, or no pickle at all ({error or type(error).__name__})") from error


class Refused(UserError):
    """The pickle is readable, but has instructions that no checkpoint needs."""


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, allowed: Callable[[str], bool], inspect: Callable[[Call], object]):
        self.allowed, self.inspect = allowed, inspect
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def top(self, kind: type | tuple[type, ...] = object) -> Any:
        if not self.stack or isinstance(self.stack[-1], _Mark) or not isinstance(self.stack[-1], kind):
            raise UserError("a step finds something else on the stack than it needs")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items = []
        while self.stack and not isinstance(self.stack[-1], _Mark):
            items.append(self.stack.pop())
        if not self.stack:
            raise UserError("a step finds no mark on the stack")
        self.stack.pop()
        return items[::-1]

    def tuple_of(self, count: int) -> None:
        self.stack.append(tuple(reversed([self.pop() for _ in range(count)])))

    def set_items(self, flat: list[Any]) -> None:
        target = self.top((dict, Call))
        items = target if isinstance(target, dict) else target.items
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            items[_key(key)] = value

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def add(self, values: list[Any]) -> None:
        self.top(set).update(_key(value) for value in values)

    def push_global(self, name: Any) -> None:
        if not isinstance(name, str) or not self.allowed(name):
            raise Refused(f"names {name!r}, which no checkpoint needs")
        self.stack.append(Global(name))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.push_global(f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else None)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise Refused(f"calls a {type(function).__name__} with a {type(arguments).__name__}")
        call = Call(function, arguments)
        self.inspect(call)
        self.stack.append(call)

    def build(self) -> None:
        state = self.pop()
        self.top(Call).state = state

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise UserError(f"a step recalls number {index}, which was never kept")
        self.stack.append(self.memo[index])


def _key(value: Any) -> Any:
    # Only what hashes at once: the hash of a deeply nested tuple would overflow the C stack.
    if not isinstance(value, _KEYS):
        raise UserError(f"a {type(value).__name__} as a key")
    return value


_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}

_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_SET": lambda m, _: m.stack.append(set()),
    "MARK": lambda m, _: m.stack.append(_Mark()),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.pop_to_mark(),
    "DUP": lambda m, _: m.stack.append(m.top()),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_to_mark())),
    "LIST": lambda m, _: m.stack.append(m.pop_to_mark()),
    "DICT": lambda m, _: (flat := m.pop_to_mark(), m.stack.append({}), m.set_items(flat)),
    "APPEND": lambda m, _: (value := m.pop(), m.extend([value])),
    "APPENDS": lambda m, _: (values := m.pop_to_mark(), m.extend(values)),
    "SETITEM": lambda m, _: (value := m.pop(), key := m.pop(), m.set_items([key, value])),
    "SETITEMS": lambda m, _: (flat := m.pop_to_mark(), m.set_items(flat)),
    "ADDITEMS": lambda m, _: (values := m.pop_to_mark(), m.add(values)),
    "PUT": lambda m, index: m.remember(index),
    "BINPUT": lambda m, index: m.remember(index),
    "LONG_BINPUT": lambda m, index: m.remember(index),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "GET": lambda m, index: m.recall(index),
    "BINGET": lambda m, index: m.recall(index),
    "LONG_BINGET": lambda m, index: m.recall(index),
    "GLOBAL": lambda m, name: m.push_global(name.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.stack.append(Persistent(m.pop())),
}
