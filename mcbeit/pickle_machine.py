"""A pickle machine that executes nothing: it reads the instructions of a pickle and calls only what its owner lists.

Python's own unpickler imports and calls what the file names. This one never imports: a global is a name, calling it
makes an inert record of the call, unless the owner has a constructor of his own for that name.
"""

import mmap
import sys
from collections.abc import Callable, Iterable, Mapping
from pickletools import genops
from typing import Any, NamedTuple

from mcbeit.errors import WeightsError
from mcbeit.pickle_values import Global, InertObject, check_containers, describe, make_dict, make_set

MAX_INSTRUCTIONS = 10_000_000  # the largest checkpoints, with optimiser, have some hundred thousand
DATA_BUILTINS = {
    *(
        "object",
        "bytes",
        "bytearray",
        "str",
        "bool",
        "int",
        "float",
        "complex",
        "range",
        "slice",
        "list",
        "tuple",
        "dict",
    ),
    "getattr",  # how Python 3.11 names the member of an enum
}
DATA_MODULES = {
    *("argparse", "collections", "copyreg", "_codecs", "datetime", "decimal", "enum", "fractions", "functools"),
    *("pathlib", "types", "typing", "uuid"),
}  # of the standard library: what configs are made of. Their calls become records, all others are refused


class _Operand(NamedTuple):
    """The argument of one instruction, and its name for messages."""

    name: str
    value: Any


class PickleMachine:
    """Runs pickles: `constructors` are called for the globals of their names, `persistent` for persistent ids.

    Both get untrusted arguments and raise WeightsError, TypeError or ValueError for what they cannot take.
    """

    def __init__(
        self, constructors: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any] | None = None
    ) -> None:
        self.constructors, self.persistent = {**PLAIN_CONSTRUCTORS, **constructors}, persistent

    def run(self, stream: mmap.mmap) -> Any:
        """The value of the pickle at the stream's position. Raises WeightsError without the name of the file."""
        stack = _Stack(self)
        try:
            for count, (opcode, operand, _) in enumerate(genops(stream)):  # type: ignore[arg-type]  # it reads only
                if count == MAX_INSTRUCTIONS:
                    raise WeightsError(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions")
                stack.step(_Operand(opcode.name, operand))
            value = stack.result()
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise WeightsError(f"its pickle is damaged: {str(error) or type(error).__name__}") from error
        check_containers(value)
        return value

    def construct(self, target: Any, args: Any) -> Any:
        """The value of calling what the file names; an inert record unless there is a constructor for it."""
        if not isinstance(target, Global):
            raise WeightsError(f"it calls {describe(target)}, which is no class or function; no checkpoint does that")
        if not isinstance(args, tuple):
            raise WeightsError(f"it calls '{target}' with {describe(args)} for arguments")
        if str(target) == "copyreg._reconstructor":  # how protocol 0 and 1 make an object: class, base, state of base
            return self.construct(args[0], ())
        if (constructor := self.constructors.get(str(target))) is not None:
            try:
                return constructor(*args)
            except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: of torch
                raise WeightsError(f"it calls '{target}' with wrong arguments: {error}") from error
        if _is_refused(target):
            raise WeightsError(
                f"it wants to call '{target}', which no checkpoint needs: it may be malicious. Nothing of it was "
                "executed; get the file from a source that you trust"
            )
        return InertObject(target, args)


class _Stack:
    """The stack and memo of one pickle: one method for each group of instructions."""

    def __init__(self, machine: PickleMachine) -> None:
        self.machine = machine
        self.values: list[Any] = []
        self.below: list[list[Any]] = []  # what lies below each mark
        self.memo: dict[int, Any] = {}

    def step(self, operand: _Operand) -> None:
        """Carry out one instruction."""
        if operand.name in LITERALS:
            self.values.append(operand.value)
        elif operand.name in CONSTANTS:
            self.values.append(CONSTANTS[operand.name]())
        elif operand.name in INSTRUCTIONS:
            INSTRUCTIONS[operand.name](self, operand.value)
        else:
            raise WeightsError(f"its pickle has the instruction {operand.name}, which no checkpoint has")

    def result(self) -> Any:
        """What the pickle leaves."""
        if self.below or len(self.values) != 1:
            raise ValueError("it does not leave one value")
        return self.values[0]

    def pop_mark(self) -> list[Any]:
        """The values above the last mark, which is taken away."""
        top, self.values = self.values, self.below.pop()
        return top

    def mark(self, _: Any) -> None:
        self.below.append(self.values)
        self.values = []

    def remember(self, key: int | None) -> None:
        self.memo[len(self.memo) if key is None else key] = self.values[-1]

    def recall(self, key: int) -> None:
        self.values.append(self.memo[key])

    def make_tuple(self, count: int) -> None:
        if len(self.values) < count:
            raise ValueError("the stack is too short")
        self.values[-count:] = [tuple(self.values[-count:])]

    def extend(self, added: Iterable[Any]) -> None:
        target = self.values[-1]
        entries = target.entries if isinstance(target, InertObject) else target
        if not isinstance(entries, list):
            raise WeightsError(f"it appends to {describe(target)}")
        entries.extend(added)

    def set_items(self, flat: list[Any]) -> None:
        target, pairs = self.values[-1], list(zip(flat[::2], flat[1::2], strict=True))
        if isinstance(target, InertObject):
            target.entries.extend(pairs)
        elif isinstance(target, dict):
            target.update(make_dict(pairs))
        else:
            raise WeightsError(f"it sets items of {describe(target)}")

    def add_items(self, added: list[Any]) -> None:
        target = self.values[-1]
        if not isinstance(target, set):
            raise WeightsError(f"it adds members to {describe(target)}")
        target |= make_set(added)

    def name_global(self, text: str) -> None:
        self.values.append(Global(*text.split(" ", 1)))

    def name_global_from_stack(self, _: Any) -> None:
        name, module = self.values.pop(), self.values.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise WeightsError(f"it names a global by {describe(module)} and {describe(name)}")
        self.values.append(Global(module, name))

    def call(self, _: Any) -> None:
        args, target = self.values.pop(), self.values.pop()
        self.values.append(self.machine.construct(target, args))

    def call_with_keywords(self, _: Any) -> None:
        keywords, args, target = self.values.pop(), self.values.pop(), self.values.pop()
        if not (isinstance(keywords, dict) and isinstance(args, tuple)):
            raise WeightsError(f"it calls {describe(target)} with {describe(keywords)} for keywords")
        self.values.append(self.machine.construct(target, (*args, keywords) if keywords else args))

    def make_instance(self, text: str) -> None:
        self.values.append(self.machine.construct(Global(*text.split(" ", 1)), tuple(self.pop_mark())))

    def make_object(self, _: Any) -> None:
        target, *args = self.pop_mark()
        self.values.append(self.machine.construct(target, tuple(args)))

    def build(self, _: Any) -> None:
        state, target = self.values.pop(), self.values[-1]
        if isinstance(target, InertObject):
            target.state = state
        elif not isinstance(target, dict):  # of a state dict: its `_metadata`, the versions of its modules
            raise WeightsError(f"it sets the state of {describe(target)}")

    def load_persistent(self, _: Any) -> None:
        if self.machine.persistent is None:
            raise WeightsError("it refers to data that are not in a plain pickle")
        self.values.append(self.machine.persistent(self.values.pop()))


def _is_refused(target: Global) -> bool:
    """Whether it is code of the standard library other than the classes of plain data."""
    top = target.module.partition(".")[0]
    if target.module == "builtins":
        return target.name not in DATA_BUILTINS
    return top in sys.stdlib_module_names and target.module not in DATA_MODULES


def _latin_bytes(text: Any, encoding: Any) -> bytes:
    """How protocols before 3 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("only latin1 text")
    return text.encode("latin-1")


PLAIN_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": make_dict,
    "collections.defaultdict": lambda factory=None, pairs=(): make_dict(pairs),
    "collections.Counter": lambda counts: make_dict(counts.items() if isinstance(counts, dict) else counts),
    "_codecs.encode": _latin_bytes,
    "builtins.set": make_set,
    "builtins.frozenset": lambda members=(): frozenset(make_set(members)),
}
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
INSTRUCTIONS: dict[str, Callable[[_Stack, Any], Any]] = {
    "PROTO": lambda stack, _: None,
    "FRAME": lambda stack, _: None,
    "STOP": lambda stack, _: None,
    "MARK": _Stack.mark,
    "POP": lambda stack, _: stack.values.pop() if stack.values else stack.pop_mark(),
    "POP_MARK": lambda stack, _: stack.pop_mark(),
    "DUP": lambda stack, _: stack.values.append(stack.values[-1]),
    "LIST": lambda stack, _: _push(stack, list),
    "TUPLE": lambda stack, _: _push(stack, tuple),
    "FROZENSET": lambda stack, _: _push(stack, lambda members: frozenset(make_set(members))),
    "DICT": lambda stack, _: _push(stack, lambda flat: make_dict(zip(flat[::2], flat[1::2], strict=True))),
    "TUPLE1": lambda stack, _: stack.make_tuple(1),
    "TUPLE2": lambda stack, _: stack.make_tuple(2),
    "TUPLE3": lambda stack, _: stack.make_tuple(3),
    "APPEND": lambda stack, _: stack.extend([stack.values.pop()]),
    "APPENDS": lambda stack, _: stack.extend(stack.pop_mark()),
    "SETITEM": lambda stack, _: stack.set_items([stack.values.pop(), stack.values.pop()][::-1]),
    "SETITEMS": lambda stack, _: stack.set_items(stack.pop_mark()),
    "ADDITEMS": lambda stack, _: stack.add_items(stack.pop_mark()),
    "PUT": _Stack.remember,
    "BINPUT": _Stack.remember,
    "LONG_BINPUT": _Stack.remember,
    "MEMOIZE": _Stack.remember,
    "GET": _Stack.recall,
    "BINGET": _Stack.recall,
    "LONG_BINGET": _Stack.recall,
    "GLOBAL": _Stack.name_global,
    "STACK_GLOBAL": _Stack.name_global_from_stack,
    "REDUCE": _Stack.call,
    "NEWOBJ": _Stack.call,
    "NEWOBJ_EX": _Stack.call_with_keywords,
    "INST": _Stack.make_instance,
    "OBJ": _Stack.make_object,
    "BUILD": _Stack.build,
    "BINPERSID": _Stack.load_persistent,
}


def _push(stack: _Stack, make: Callable[[list[Any]], Any]) -> None:
    members = stack.pop_mark()
    stack.values.append(make(members))
