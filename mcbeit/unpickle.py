"""Reading torch checkpoints and pickled modules without executing anything that is in them.

Files written by `torch.save` (zip archives, and the streams from before torch 1.6), plain pickles that hold tensors,
and safetensors. Tensors and plain containers become what they are; every other object becomes an `InertObject`.
"""

import mmap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mcbeit.errors import WeightsError
from mcbeit.pickle_machine import PickleMachine
from mcbeit.pickle_values import Global, describe
from mcbeit.torch_storages import ArchiveStorages, StreamStorages

STREAM_MAGIC, STREAM_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
DTYPE_OF_STORAGE = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
}


def read_checkpoint(path: str | Path) -> Any:
    """What a checkpoint holds: dicts, lists, tuples, numbers, text, CPU tensors, and `InertObject`s for the rest.

    Nothing of the file is imported or called. Tensors of a zip archive are read from the disk when they are used, so
    the file must stay as it is until then; changing a tensor does not change the file. Raises WeightsError, which names
    the file, if it is no checkpoint, is damaged, or asks for a call that no checkpoint needs.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is empty"
        raise WeightsError(f"the weights '{path}' cannot be read: {reason}") from error
    try:
        if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
            return load_file(path)
        with torch.device("cpu"):  # also where a plan is made on meta
            return _read(data, {"torch.storage._load_from_bytes": _read_nested})
    except (WeightsError, SafetensorError) as error:
        raise WeightsError(f"'{path}' cannot be read as weights: {error}") from error


def _read(data: mmap.mmap, constructors: dict[str, Callable[..., Any]]) -> Any:
    constructors = {**TENSOR_CONSTRUCTORS, **constructors}
    if data[:4] == b"PK\3\4":
        archive = ArchiveStorages(data)
        data.seek(archive.place("data.pkl")[0])
        return PickleMachine(constructors, partial(_persistent, archive)).run(data)
    if data[:1] not in (b"\x80", b"(", b"]", b"}", b"c"):
        raise WeightsError(f"it is no checkpoint; it begins with {bytes(data[:16])!r}")
    if _is_stream(data):
        return _read_stream(data, constructors)
    return PickleMachine(constructors).run(data)


def _is_stream(data: mmap.mmap) -> bool:
    """Whether it is a checkpoint from before torch 1.6. The position is then behind its mark, else at the beginning."""
    mark = b"\x8a\x0a" + STREAM_MAGIC.to_bytes(10, "little") + b"."
    found = data.find(mark, 0, 64)  # behind PROTO, which is as long as its protocol says
    data.seek(found + len(mark) if found >= 0 else 0)
    return found >= 0


def _read_stream(data: mmap.mmap, constructors: dict[str, Callable[..., Any]]) -> Any:
    """The pickles of protocol, system, objects and storage names, then the storages."""
    plain = PickleMachine({})
    protocol, system = plain.run(data), plain.run(data)
    if protocol != STREAM_PROTOCOL or not isinstance(system, dict) or not system.get("little_endian"):
        raise WeightsError(
            f"it has the protocol {protocol!r} or the byte order of another machine; load and save it there with torch"
        )
    storages = StreamStorages(len(data))
    value = PickleMachine(constructors, partial(_persistent, storages)).run(data)
    storages.fill(data, plain.run(data))
    return value


def _read_nested(content: Any) -> Any:
    """The storage of a tensor in a plain pickle: a checkpoint of its own, which may not nest any more."""
    if not isinstance(content, bytes) or not content:
        raise WeightsError(f"it has {describe(content)} for a storage")
    data = mmap.mmap(-1, len(content))
    data.write(content)
    return _read(data, {})


def _persistent(storages: ArchiveStorages | StreamStorages, identity: Any) -> Any:
    """A storage, or in a stream the class of a module, which comes with its source."""
    if not isinstance(identity, tuple) or not identity:
        raise WeightsError(f"it refers to data by {describe(identity)}")
    kind, *parts = identity
    if kind == "module" and parts and isinstance(parts[0], Global):
        return parts[0]
    if kind != "storage" or len(parts) not in (4, 5):
        raise WeightsError(f"it refers to data of the unknown kind {kind!r}")
    storage_type, key, _, count, *view = parts
    if not isinstance(key, str) or type(count) is not int:
        raise WeightsError(f"it refers to a storage by {describe(key)} and {describe(count)}")
    flat = storages.get(key, _storage_dtype(storage_type), count)
    if not any(view):
        return flat
    _, begin, length = view[0]
    if not 0 <= begin <= begin + length <= count:
        raise WeightsError(f"a part of its storage '{key}' lies outside of it")
    return flat[begin : begin + length]


def _storage_dtype(storage_type: Any) -> torch.dtype:
    name = str(storage_type).removesuffix("Storage").removeprefix("torch.").removeprefix("storage.")
    if not isinstance(storage_type, Global) or name not in DTYPE_OF_STORAGE:
        raise WeightsError(f"it has a storage of the unknown kind {describe(storage_type)}")
    return DTYPE_OF_STORAGE[name]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor over a storage; never more elements than the storage has."""
    if not isinstance(storage, Tensor) or storage.dim() != 1:
        raise WeightsError(f"it makes a tensor of {describe(storage)}")
    numbers = (offset, *size, *stride)
    if not all(type(number) is int and number >= 0 for number in numbers) or len(size) != len(stride):
        raise WeightsError(f"it has a tensor of size {size!r}, stride {stride!r} and offset {offset!r}")
    count, end = 1, offset + 1
    for length, step in zip(size, stride, strict=True):
        count, end = count * length, end + (length - 1) * step
    if count and (end > len(storage) or count > len(storage)):
        raise WeightsError(f"it has a tensor of size {tuple(size)} in a storage of {len(storage)} numbers")
    return storage.as_strided(size, stride, storage.storage_offset() + offset) if count else storage.new_empty(size)


def _tensor_of_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any
) -> Tensor:
    """A tensor of a type that has no storage class, over bytes."""
    name = dtype.name if isinstance(dtype, Global) and dtype.module == "torch" else ""
    found = vars(torch).get(name)
    if not isinstance(found, torch.dtype) or not isinstance(storage, Tensor) or storage.nbytes % found.itemsize:
        raise WeightsError(f"it makes a tensor of {describe(storage)} and the type {describe(dtype)}")
    return _tensor(storage.view(found), offset, size, stride)


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise WeightsError(f"it makes a parameter of {describe(data)}")
    return data


TENSOR_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": tuple,
}
