"""What becomes of the objects in a pickle: names, inert records, and containers that are safe to walk through."""

from collections.abc import Iterable
from typing import Any, NoReturn

from mcbeit.errors import WeightsError

MAX_VALUES = 10_000_000  # counted as often as they are reached: shared lists of shared lists grow exponentially
MAX_DEPTH = 100  # of containers in containers
SCALARS = (str, bytes, int, float, type(None))
PYTHON_2_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}


class Global:
    """The name of a class or function, as a file gives it. Nothing was imported."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = PYTHON_2_NAMES.get(module, module), name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    def __repr__(self) -> str:
        return f"<global {self}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Global) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


class InertObject:
    """What the file says of an object that is no plain value: its class, arguments, state and entries, as plain values.

    `state` is what its `__dict__` would be; `entries` are the items that it holds if it is a kind of list or dict.
    """

    def __init__(self, kind: Global, args: tuple[Any, ...]) -> None:
        self.kind, self.args = kind, args
        self.state: Any = None
        self.entries: list[Any] = []

    def __repr__(self) -> str:
        return f"<inert {self.kind}>"


def make_dict(pairs: Iterable[Iterable[Any]] = ()) -> dict[Any, Any]:
    """A dict whose keys are scalars, names, or flat tuples of them: hashing anything deeper could overflow."""
    made = {}
    for key, value in pairs:
        made[_key(key)] = value
    return made


def make_set(members: Iterable[Any] = ()) -> set[Any]:
    """A set of what may be a key."""
    return {_key(member) for member in members}


def describe(value: Any) -> str:
    """A value in an error message, without its content."""
    if isinstance(value, InertObject):
        return f"a result of '{value.kind}'"
    return f"'{value}'" if isinstance(value, Global) else f"a value of type {type(value).__name__}"


def _key(value: Any) -> Any:
    members = value if type(value) is tuple else (value,)
    if not all(isinstance(member, (*SCALARS, Global, InertObject)) for member in members):
        _refuse_key(value)
    return value


def _refuse_key(value: Any) -> NoReturn:
    raise WeightsError(f"it has {describe(value)} as a key, or members of that kind in it")


def check_containers(root: Any) -> None:
    """Raise WeightsError for containers that hold themselves, are too deep, or too many where each is counted apart.

    Objects may refer to each other in circles, so each is a root of its own.
    """
    roots, seen, sizes = [root], set[int](), dict[int, tuple[int, int]]()
    open_containers = set[int]()

    def measure(value: Any, depth: int) -> tuple[int, int]:
        """How many values it holds, and how deep they lie."""
        if isinstance(value, InertObject):
            if id(value) not in seen:
                seen.add(id(value))
                roots.append(value)
            return 1, 0
        if not isinstance(value, list | tuple | dict):
            return 1, 0
        if id(value) in open_containers:
            raise WeightsError("it has a container that holds itself")
        if id(value) not in sizes:
            if depth == MAX_DEPTH:
                raise WeightsError(f"its containers lie more than {MAX_DEPTH} deep in each other")
            open_containers.add(id(value))
            held = [*value, *value.values()] if isinstance(value, dict) else value
            inner = [measure(member, depth + 1) for member in held]
            open_containers.remove(id(value))
            sizes[id(value)] = 1 + sum(size for size, _ in inner), 1 + max((deep for _, deep in inner), default=0)
        size, height = sizes[id(value)]
        if depth + height > MAX_DEPTH:
            raise WeightsError(f"its containers lie more than {MAX_DEPTH} deep in each other")
        if size > MAX_VALUES:
            raise WeightsError(f"its containers hold more than {MAX_VALUES:,} values")
        return size, height

    while roots:
        value = roots.pop()
        parts = (value.args, value.state, value.entries) if isinstance(value, InertObject) else (value,)
        for part in parts:
            measure(part, 0)
