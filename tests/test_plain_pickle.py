import contextlib
import io
import pickle
import pickletools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcbeit.errors import DataError
from mcbeit.plain_pickle import read_plain_pickle

VALUES = {
    "gnd": [{"easy": [3, 4], "bbx": (1.5, 2.0, 3.0, 2**70), "none": None, "yes": True}],
    "names": ["a", "Köln", b"\xff", ""],
    3: {1, 2},
}
ARRAYS = {
    "integers": np.arange(5),
    "none": np.empty(0, dtype=int),
    "by columns": np.arange(6.0).reshape(2, 3).T,
    "big-endian": np.arange(3, dtype=">u2"),
    "text": np.array(["a", "日本"]),
    "bytes": np.array([b"ab", b"c"]),
    "truth": np.array([[True], [False]]),
    "no axes": np.array(7),
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def message(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read_plain_pickle(path)
    return str(error.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_read_plain_pickle__gives_plain_values_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    assert read_plain_pickle(write(tmp_path / "a.pkl", pickle.dumps(VALUES, protocol))) == VALUES


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("package", [b"numpy._core", b"numpy.core"])
def test_read_plain_pickle__gives_arrays_of_every_protocol(tmp_path: Path, protocol: int, package: bytes) -> None:
    content = pickle.dumps(ARRAYS, protocol)
    if protocol < 4:  # from there on names have a length before them
        content = content.replace(b"numpy._core", package)
    found = read_plain_pickle(write(tmp_path / "a.pkl", content))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype, name
        assert np.array_equal(found[name], array), name


def test_read_plain_pickle__numbers_of_numpy_become_those_of_python(tmp_path: Path) -> None:
    found = read_plain_pickle(write(tmp_path / "a.pkl", pickle.dumps([np.float32(1.5), np.int64(3), np.bool_(True)])))
    assert found == [1.5, 3, True]
    assert [type(value) for value in found] == [float, int, bool]


def test_read_plain_pickle__takes_what_python_2_wrote(tmp_path: Path) -> None:
    """There, text is bytes, and so is what an array holds."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'i2'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nU\x04\x01\x00\xff\x01tb"
    )
    found = read_plain_pickle(write(tmp_path / "a.pkl", b"(dS'easy'\n" + array + b"s."))
    assert found["easy"].tolist() == [1, 511]


def test_read_plain_pickle__an_array_that_is_named_often_is_one(tmp_path: Path) -> None:
    """Or a small file could fill the memory."""
    found = read_plain_pickle(write(tmp_path / "a.pkl", pickle.dumps([np.arange(1000)] * 100)))
    assert len({id(array) for array in found}) == 1


class Attack:
    """Pickles to a call of whatever it is given."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_read_plain_pickle__executes_nothing(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "was-executed"
    modules = set(sys.modules)
    for attack in (Attack(Path.touch, mark), Attack(open, str(mark), "w"), Attack(exec, f"open({str(mark)!r}, 'w')")):
        path = write(tmp_path / "bad.pkl", pickle.dumps({"gnd": [attack]}, protocol))
        assert message(path).startswith(f"'{path}' is no pickle of plain values: ")
    assert not mark.exists()
    assert set(sys.modules) == modules


DTYPE = b"cnumpy\ndtype\n(S'%b'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
SCALAR = b"cnumpy.core.multiarray\nscalar\n(" + DTYPE + b"%b\ntR."


def array_of(shape: bytes, dtype: bytes = b"i2") -> bytes:
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n"
    return start + shape + DTYPE % dtype + b"I00\nU\x04\x01\x00\xff\x01tb."


ABUSE = {
    "an object": (pickle.dumps(np.array([[1], "a"], dtype=object)), "an array of O8; numbers and text are allowed"),
    "a date": (pickle.dumps(np.array(["2026-01-01"], dtype="datetime64[D]")), "an array of M8"),
    "a record": (pickle.dumps(np.zeros(2, dtype=[("a", "i4")])), "an array of V4"),
    "a wide text": (SCALAR % (b"U99999999999", b"S'a'"), "is no pickle of plain values"),
    "no dtype": (b"cnumpy.core.multiarray\nscalar\n(I3\nS'a'\ntR.", "an array of a value of type int"),
    "no such dtype": (SCALAR % (b"i3", b"S'abc'"), "is no pickle of plain values"),
    "too few bytes": (SCALAR % (b"i4", b"S'a'"), "it holds 1 bytes for an array of int32 and the shape ()"),
    "no bytes": (SCALAR % (b"i4", b"I7"), "an array of a value of type int and the shape ()"),
    "a long shape": (array_of(b"(I99999999999\nt"), "4 bytes for an array of int16 and the shape (99999999999,)"),
    "a negative shape": (array_of(b"(I-1\nI-2\nt"), "the shape (-1, -2)"),
    "a shape of text": (array_of(b"(S'2'\nt"), "the shape ('2',)"),
    "no shape": (array_of(b"I2\n"), "is no pickle of plain values"),
    "no state": (b"cnumpy.core.multiarray\n_reconstruct\n)R.", "is no pickle of plain values"),
    "many zeros": (b"c__builtin__\nbytes\n(I99999999999\ntR.", "wrong arguments"),
    "a name": (b"cos\nsystem\n.", "it holds 'os.system'"),
    "a name as key": (b"(dcos\nsystem\nI1\ns.", "it holds 'os.system'"),
    "another class": (pickle.dumps(io.BytesIO(b"x")), "no pickle of plain values"),
    "another core": (b"ccore.multiarray\nscalar\n)R.", "a result of 'core.multiarray.scalar'"),
    "itself": (b"]q\x00h\x00a.", "a container that holds itself"),
    "nothing": (b"", "is empty"),
    "a page": (b"<!DOCTYPE html>", "damaged"),
    "the start": (pickle.dumps(ARRAYS)[:-20], "damaged"),
}


@pytest.mark.parametrize("name", ABUSE)
def test_read_plain_pickle__refuses_all_else(tmp_path: Path, name: str) -> None:
    content, reason = ABUSE[name]
    assert reason in message(write(tmp_path / "a.pkl", content))


def test_read_plain_pickle__of_nothing_there(tmp_path: Path) -> None:
    assert message(tmp_path / "a.pkl").endswith("a.pkl' cannot be read: No such file or directory")
    assert message(tmp_path).endswith("cannot be read: Is a directory")


def test_read_plain_pickle__survives_any_byte_that_is_wrong(tmp_path: Path) -> None:
    rng, whole = np.random.default_rng(0), pickletools.optimize(pickle.dumps([VALUES, ARRAYS], 4))
    for place in rng.choice(len(whole), size=150):
        content = bytearray(whole)
        content[place] = rng.integers(256)
        with contextlib.suppress(DataError):
            read_plain_pickle(write(tmp_path / "a.pkl", bytes(content)))
