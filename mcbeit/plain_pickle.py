"""Reading pickles of plain values - dicts, lists, text, numbers, numpy arrays - without executing anything in them."""

import math
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np

from mcbeit.errors import DataError, WeightsError
from mcbeit.pickle_machine import PickleMachine
from mcbeit.pickle_values import Global, InertObject, describe
from mcbeit.sources import location

_DTYPE = re.compile(r"[biufSU][1-9]\d*")  # truth, integers, floats, text; nothing that could hold an object
_NUMPY = re.compile(r"numpy\._?core\.(multiarray\._reconstruct|multiarray\.scalar|numeric\._frombuffer)")


def read_plain_pickle(path: str | Path) -> Any:
    """What a pickle of any protocol at a path or URL holds; numpy's numbers become Python's.

    Raises DataError if the file cannot be read, is damaged, or holds anything but plain values.
    """
    try:
        content = location.read_bytes(str(path))
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if not content:
        raise DataError(f"'{path}' is empty")
    with mmap.mmap(-1, len(content)) as data:
        data.write(content)
        data.seek(0)
        try:
            return _plain(PickleMachine({"builtins.bytes": lambda: b""}).run(data), {})
        except (WeightsError, ValueError, TypeError, IndexError, OverflowError) as error:
            raise DataError(f"'{path}' is no pickle of plain values: {error}") from error


def _plain(value: Any, made: dict[int, Any]) -> Any:
    """The value with arrays for what numpy wrote, each of them made once. Raises ValueError for any other object."""
    if isinstance(value, dict):
        return {_plain(key, made): _plain(held, made) for key, held in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_plain(held, made) for held in value)
    if isinstance(value, InertObject):
        if id(value) not in made:
            made[id(value)] = _from_numpy(value)
        return made[id(value)]
    if isinstance(value, Global):
        raise ValueError(f"it holds {describe(value)}")
    return value


def _from_numpy(value: InertObject) -> Any:
    known = _NUMPY.fullmatch(str(value.kind))
    if known is None:
        raise ValueError(f"it holds {describe(value)}")
    if known[1] == "multiarray.scalar":
        dtype, data = value.args
        return _array(data, dtype, ()).item()
    if known[1] == "numeric._frombuffer":  # protocol 5
        return _array(*value.args)
    _, shape, dtype, is_by_columns, data = value.state
    return _array(data, dtype, shape, "F" if is_by_columns else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    numbers = _dtype(dtype)
    raw = data.encode("latin-1") if isinstance(data, str) else data  # text as Python 2 wrote it is bytes
    if not isinstance(raw, bytes | bytearray) or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"it holds an array of {describe(data)} and the shape {shape!r}")
    if len(raw) != math.prod(shape) * numbers.itemsize:
        raise ValueError(f"it holds {len(raw)} bytes for an array of {numbers} and the shape {shape!r}")
    return np.frombuffer(raw, numbers).reshape(shape, order=order).copy()


def _dtype(value: Any) -> np.dtype[Any]:
    is_dtype = isinstance(value, InertObject) and str(value.kind) == "numpy.dtype"
    name = value.args[0] if is_dtype else None
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise ValueError(f"it holds an array of {name or describe(value)}; numbers and text are allowed")
    return np.dtype(name).newbyteorder(value.state[1] if value.state else "=")
