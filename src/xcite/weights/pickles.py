"""Pickles as a data format: read without executing anything.

A pickle is a program for a small stack machine, and Python's own machine may call anything. This
one knows only the instructions that weight files need, and of the globals only a table handed to
it, whose entries are functions of this package, and names that are usual beside weights, which it
keeps as names (`inert_objects`); any other name ends the reading. Nothing is imported, no object of
another program is ever made. Work and memory are bounded by the bytes
that are present: every length is compared with the rest of the file before anything is allocated.
"""

import struct
from collections import Counter
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from xcite.weights.inert_objects import Inert, is_data_type, is_tolerated
from xcite.weights.pickle_globals import (
    NUMPY_GLOBALS,
    ArrayRecord,
    DtypeRecord,
    FieldsRecord,
    Global,
    Globals,
    LongText,
    PickleError,
    checked_key,
    shown,
)

# A training checkpoint of the largest model takes about 200,000 instructions. Every instruction
# makes at most one small object, so the limit bounds the memory of files that are all objects.
MAX_INSTRUCTIONS = 500_000
MAX_NAME = 4096  # bytes of a name or text; longer texts are the numbers of protocol 2
MAX_LONG = 1024  # bytes or digits of a number; random states have long ones

_MARK = object()
_STOP = 0x2E


class _Machine:
    def __init__(
        self,
        file: BinaryIO,
        end: int,
        globals_: Globals,
        persistent: Callable[[Any], Any] | None,
        aside: Counter[str],
        instructions: int,
    ):
        self.file = file
        self.end = end
        self.globals = globals_
        self.callable = {id(function) for function in globals_.values()}
        self.persistent = persistent
        self.aside = aside
        self.instructions = instructions
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        """The next bytes; the length is compared with the rest of the file first."""
        if count > self.end - self.file.tell():
            raise PickleError("the data end too early")
        taken = self.file.read(count)
        if len(taken) != count:
            raise PickleError("the data end too early")
        return taken

    def numbers(self, count: int) -> bytes | bytearray:
        """Bytes of a pickle: an array's numbers are read straight to where they stay."""
        if count <= MAX_NAME:
            return self.take(count)
        if count > self.end - self.file.tell():
            raise PickleError("the data end too early")
        raw = bytearray(count)
        if self.file.readinto(raw) != count:  # type: ignore[attr-defined]
            raise PickleError("the data end too early")
        return raw

    def unsigned(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def signed(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little", signed=True)

    def line(self) -> str:
        """A text that ends with a newline (names of globals)."""
        raw = self.file.readline(MAX_NAME)
        if not raw.endswith(b"\n"):
            raise PickleError("a name does not end")
        return self.decoded(raw[:-1])

    @staticmethod
    def decoded(raw: bytes) -> str:
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise PickleError("a text is not UTF-8") from error

    def text(self, length: int) -> Any:
        raw = self.take(length)
        if length <= MAX_NAME:
            return self.decoded(raw)
        # Lead bytes up to 0xC3 encode U+0000 to U+00FF: one byte a character, decoded too.
        if int(np.frombuffer(raw, np.uint8).max()) > 0xC3:
            self.decoded(raw)  # it must be a text all the same
            return Inert("a long text")
        return LongText(bytearray(self.decoded(raw).encode("latin1")))

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise PickleError("the stack is empty")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise PickleError("the stack is empty")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self.stack:
            item = self.stack.pop()
            if item is _MARK:
                items.reverse()
                return items
            items.append(item)
        raise PickleError("a mark is missing")

    def set_items(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, Inert):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("items are set on something other than a dictionary")
        for i in range(0, len(items), 2):
            target[checked_key(items[i])] = items[i + 1]

    def append(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, Inert):
            return
        if not isinstance(target, list):
            raise PickleError("items are appended to something other than a list")
        target.extend(items)

    def found(self, module: Any, name: Any) -> Global | Inert:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a global's name is not text")
        function = self.globals.get((module, name))
        if function is not None:
            return function
        if is_tolerated(module, name):
            if not is_data_type(module, name):
                self.aside[f"{module}.{name}"] += 0
            return Inert(f"{module}.{name}")
        raise PickleError(
            f"it asks for {shown(f'{module}.{name}')}, which weights do not need; "
            "nothing of it was executed; where the file was made, save model.state_dict() alone"
        )

    def call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Inert):
            if not isinstance(arguments, tuple):
                raise PickleError("a global is called without a tuple of arguments")
            made = function.called(arguments)
            self.aside[made.name] += 1
            return made
        if id(function) not in self.callable:
            raise PickleError("something other than a known global is called")
        if not isinstance(arguments, tuple):
            raise PickleError("a global is called without a tuple of arguments")
        try:
            return function(*arguments)
        except (TypeError, ValueError, OverflowError) as error:
            raise PickleError("a global is called with the wrong arguments") from error

    def recall(self, index: int) -> Any:
        if index not in self.memo:
            raise PickleError("a remembered object is missing")
        return self.memo[index]

    def run(self) -> Any:
        for _ in range(self.instructions):
            code = self.take(1)[0]
            if code == _STOP:
                result = self.pop()
                if self.stack:
                    raise PickleError("objects are left over")
                return result
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise PickleError(f"pickle instruction {code:#04x} does not occur in weights files")
            instruction(self)
        raise PickleError(f"more than {self.instructions} instructions")


def _protocol(machine: _Machine) -> None:
    version = machine.unsigned(1)
    if not 2 <= version <= 5:
        raise PickleError(f"pickle protocol {version}; 2 to 5 are read")


def _build(machine: _Machine) -> None:
    state = machine.pop()
    target = machine.top()
    if isinstance(target, ArrayRecord | DtypeRecord | FieldsRecord):
        target.set_state(state)
    # An OrderedDict's attributes (_metadata) are not needed.
    elif not isinstance(target, dict | Inert):
        raise PickleError("a state is set on something that takes none")


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.top()


def _push_reduced(machine: _Machine) -> None:
    arguments = machine.pop()
    machine.stack.append(machine.call(machine.pop(), arguments))


def _push_reduced_with_names(machine: _Machine) -> None:
    """NEWOBJ_EX: keyword arguments, which only objects of other programs have."""
    if not isinstance(machine.pop(), dict):
        raise PickleError("keyword arguments are not a dictionary")
    _push_reduced(machine)


def _push_stack_global(machine: _Machine) -> None:
    name = machine.pop()
    machine.stack.append(machine.found(machine.pop(), name))


def _push_persistent(machine: _Machine) -> None:
    if machine.persistent is None:
        raise PickleError("a reference to outside data, which this kind of file does not have")
    machine.stack.append(machine.persistent(machine.pop()))


def _push_tuple(machine: _Machine, count: int) -> None:
    items = [machine.pop() for _ in range(count)]
    machine.stack.append(tuple(reversed(items)))


def _number_line(machine: _Machine) -> Any:
    text = machine.line()
    if text in ("00", "01"):  # protocol 1's booleans
        return text == "01"
    if len(text) > 20 or not text.removeprefix("-").isascii():
        raise PickleError("a number is too long")
    try:
        return int(text)
    except ValueError as error:
        raise PickleError("a number is malformed") from error


def _long_line(machine: _Machine) -> int:
    """The decimal number of protocol 1, which may end in L."""
    text = machine.line().removesuffix("L")
    if len(text) > MAX_LONG or not text.removeprefix("-").isdecimal() or not text.isascii():
        raise PickleError("a number is malformed or too long")
    return int(text)


def _long(machine: _Machine, width: int) -> int:
    length = machine.unsigned(width)
    if length > MAX_LONG:
        raise PickleError(f"a number of {length} bytes")
    return machine.signed(length)


def _float_line(machine: _Machine) -> float:
    text = machine.line()
    try:
        return float(text)
    except ValueError as error:
        raise PickleError("a number is malformed") from error


def _make_set(machine: _Machine) -> Inert:
    """A set is left aside: hashing its items could take exponential time."""
    machine.aside["set"] += 1
    return Inert("set")


def _frozen_set(machine: _Machine) -> Inert:
    machine.pop_to_mark()
    return _make_set(machine)


def _add_items(machine: _Machine) -> None:
    machine.pop_to_mark()
    if not isinstance(machine.top(), Inert):
        raise PickleError("items are added to something other than a set")


def _set_item(machine: _Machine) -> None:
    value = machine.pop()
    key = machine.pop()
    machine.set_items(machine.top(), [key, value])


def _append(machine: _Machine) -> None:
    value = machine.pop()
    machine.append(machine.top(), [value])


def _set_items(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.set_items(machine.top(), items)


def _appends(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.append(machine.top(), items)


def _dict_of_marked(machine: _Machine) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    machine.set_items(result, machine.pop_to_mark())
    return result


def _pushes(value: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value(machine))


def _frame(machine: _Machine) -> None:
    if machine.unsigned(8) > machine.end - machine.file.tell():
        raise PickleError("the data end too early")


_INSTRUCTIONS: dict[int, Callable[[_Machine], Any]] = {
    ord(code): run
    for code, run in {
        "\x80": _protocol,
        "\x95": _frame,
        "(": _pushes(lambda m: _MARK),
        "0": lambda m: m.pop(),
        "1": lambda m: m.pop_to_mark(),
        "N": _pushes(lambda m: None),
        "\x88": _pushes(lambda m: True),
        "\x89": _pushes(lambda m: False),
        "I": _pushes(_number_line),
        "J": _pushes(lambda m: m.signed(4)),
        "K": _pushes(lambda m: m.unsigned(1)),
        "M": _pushes(lambda m: m.unsigned(2)),
        "L": _pushes(_long_line),
        "F": _pushes(_float_line),
        "\x8a": _pushes(lambda m: _long(m, 1)),
        "\x8b": _pushes(lambda m: _long(m, 4)),
        "G": _pushes(lambda m: struct.unpack(">d", m.take(8))[0]),
        "X": _pushes(lambda m: m.text(m.unsigned(4))),
        "\x8c": _pushes(lambda m: m.text(m.unsigned(1))),
        "\x8d": _pushes(lambda m: m.text(m.unsigned(8))),
        "T": _pushes(lambda m: m.take(m.unsigned(4)).decode("latin1")),
        "U": _pushes(lambda m: m.take(m.unsigned(1)).decode("latin1")),
        "B": _pushes(lambda m: m.numbers(m.unsigned(4))),
        "C": _pushes(lambda m: m.take(m.unsigned(1))),
        "\x8e": _pushes(lambda m: m.numbers(m.unsigned(8))),
        "\x96": _pushes(lambda m: m.numbers(m.unsigned(8))),
        ")": _pushes(lambda m: ()),
        "t": _pushes(lambda m: tuple(m.pop_to_mark())),
        "\x85": lambda m: _push_tuple(m, 1),
        "\x86": lambda m: _push_tuple(m, 2),
        "\x87": lambda m: _push_tuple(m, 3),
        "]": _pushes(lambda m: []),
        "l": _pushes(lambda m: m.pop_to_mark()),
        "a": _append,
        "e": _appends,
        "}": _pushes(lambda m: {}),
        "d": _pushes(_dict_of_marked),
        "s": _set_item,
        "u": _set_items,
        "h": _pushes(lambda m: m.recall(m.unsigned(1))),
        "j": _pushes(lambda m: m.recall(m.unsigned(4))),
        "q": lambda m: _put(m, m.unsigned(1)),
        "r": lambda m: _put(m, m.unsigned(4)),
        "\x94": lambda m: _put(m, len(m.memo)),
        "c": _pushes(lambda m: m.found(m.line(), m.line())),
        "\x93": _push_stack_global,
        "R": _push_reduced,
        "\x81": _push_reduced,  # NEWOBJ: for our functions the same as a call
        "\x92": _push_reduced_with_names,
        "\x8f": _pushes(_make_set),
        "\x90": _add_items,
        "\x91": _pushes(_frozen_set),
        "b": _build,
        "Q": _push_persistent,
    }.items()
}


def read_pickle(
    file: BinaryIO,
    end: int,
    globals_: Globals = NUMPY_GLOBALS,
    persistent: Callable[[Any], Any] | None = None,
    aside: Counter[str] | None = None,
    instructions: int = MAX_INSTRUCTIONS,
) -> Any:
    """Read one pickle as plain data.

    Args:
        file: positioned at the pickle's first byte; afterwards just behind its last.
        end: position behind the last byte that may be read.
        globals_: (module, name), matched exactly, to the function of ours that stands for it.
        persistent: what a reference to outside data stands for (PyTorch's storages).
        aside: counts, by name, the objects of which only the name is kept.
        instructions: how many are carried out at most.

    Returns:
        None, bool, int, float, str, bytes, tuples, lists and dictionaries of such, `Inert` objects
        and the results of the functions in ``globals_``. Containers may share or contain one
        another.

    Raises:
        PickleError: anything but what weight files hold.
    """
    aside = Counter() if aside is None else aside
    return _Machine(file, end, globals_, persistent, aside, instructions).run()
