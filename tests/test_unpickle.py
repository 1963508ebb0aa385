import argparse
import collections
import io
import os
import pickle
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mcbeit import pickle_machine
from mcbeit.errors import WeightsError
from mcbeit.pickle_values import Global, InertObject
from mcbeit.unpickle import read_checkpoint

HEAD = b"\x80\x02"


@pytest.fixture(params=["archive", "stream"])
def save(request: pytest.FixtureRequest) -> Any:
    """`torch.save` in the format of today and in that from before torch 1.6."""

    def write(value: Any, path: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch looks for the source of module classes
            torch.save(value, path, _use_new_zipfile_serialization=request.param == "archive")
        return path

    return write


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


class Attack:
    """Pickles to a call of whatever it is given."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.reduced


def plain(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path


def test_read_checkpoint__gives_what_torch_saved(tmp_path: Path, save: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    found = read_checkpoint(
        save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, tmp_path / "a.pth")
    )
    assert found["epoch"] == 3
    assert list(found["model"]) == list(model.state_dict())
    assert all(torch.equal(found["model"][name], value) for name, value in model.state_dict().items())
    assert type(found["model"]) is dict
    moment = optimizer.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg"], moment)
    assert found["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).view(2, 3).t(),
        torch.arange(10)[3:7:2],
        torch.zeros(0, 3),
        torch.tensor(2.5),
        torch.tensor([True, False]),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(3, dtype=torch.complex64),
        nn.Parameter(torch.ones(2)).detach(),
    ],
    ids=str,
)
def test_read_checkpoint__tensors_keep_values_and_types(tmp_path: Path, save: Any, tensor: torch.Tensor) -> None:
    found = read_checkpoint(save(tensor, tmp_path / "a.pth"))
    assert found.dtype == tensor.dtype
    assert torch.equal(found, tensor)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e4m3fn])
def test_read_checkpoint__types_without_a_storage_class(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(torch.arange(5).to(dtype), tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found.dtype == dtype
    assert found.float().tolist() == [0, 1, 2, 3, 4]


def test_read_checkpoint__shared_storages_stay_shared(tmp_path: Path, save: Any) -> None:
    whole = torch.arange(4.0)
    found = read_checkpoint(save([whole, whole[1:]], tmp_path / "a.pth"))
    found[0][1] = 9
    assert found[1][0] == 9


def test_read_checkpoint__changing_a_tensor_leaves_the_file(tmp_path: Path) -> None:
    torch.save(torch.zeros(8), tmp_path / "a.pth")
    read_checkpoint(tmp_path / "a.pth").add_(1)
    assert read_checkpoint(tmp_path / "a.pth").sum() == 0


def test_read_checkpoint__unknown_objects_become_inert(tmp_path: Path, save: Any) -> None:
    content = {"args": argparse.Namespace(lr=0.1), "best": np.float32(3), "count": collections.Counter("aab")}
    found = read_checkpoint(save(content, tmp_path / "a.pth"))
    assert isinstance(found["args"], InertObject)
    assert found["args"].state == {"lr": 0.1}
    assert str(found["args"].kind) == "argparse.Namespace"
    assert repr(found["args"]) == "<inert argparse.Namespace>"
    assert isinstance(found["best"], InertObject)
    assert "numpy" in repr(found["best"])
    assert found["count"] == {"a": 2, "b": 1}


def test_read_checkpoint__classes_as_keys_and_values_are_names(tmp_path: Path, save: Any) -> None:
    found = read_checkpoint(save({"callbacks": {io.BytesIO: 1}, "kind": argparse.Namespace}, tmp_path / "a.pth"))
    assert found == {"callbacks": {Global("_io", "BytesIO"): 1}, "kind": Global("argparse", "Namespace")}


def test_read_checkpoint__kinds_of_list_and_dict_keep_their_entries(tmp_path: Path, monkeypatch: Any) -> None:
    for name, base in (("Wide", dict), ("Long", list)):
        kind = type(name, (base,), {"__module__": "elsewhere"})
        monkeypatch.setitem(sys.modules, "elsewhere", argparse.Namespace(**{name: kind}))
        made = kind({"a": 1}) if base is dict else kind([1, 2])
        found = read_checkpoint(plain(pickle.dumps(made), tmp_path / name))
        assert found.kind == Global("elsewhere", name)
        assert found.entries == ([("a", 1)] if base is dict else [1, 2])


def test_read_checkpoint__whole_modules(tmp_path: Path, save: Any) -> None:
    model = Model()
    found = read_checkpoint(save(model, tmp_path / "encoder.pkl"))
    body = found.state["_modules"]["body"]
    assert body.kind == Global("torch.nn.modules.container", "Sequential")
    assert torch.equal(body.state["_modules"]["0"].state["_parameters"]["weight"], model.body[0].weight)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_read_checkpoint__plain_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    model = Model()
    content = {"model": model, "b": b"\xff", "set": {1, 2}, "frozen": frozenset("a"), "number": 2**70, "no": None}
    path = plain(pickle.dumps(content, protocol=protocol), tmp_path / "a.pkl")
    found = read_checkpoint(path)
    body = found.pop("model").state["_modules"]["body"]
    assert torch.equal(body.state["_modules"]["1"].state["_buffers"]["running_var"], torch.ones(4))
    assert found == {key: value for key, value in content.items() if key != "model"}


def test_read_checkpoint__safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert read_checkpoint(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]


ATTACKS = {
    "os.system": lambda mark: Attack(os.system, f"touch {mark}"),
    "builtins.eval": lambda mark: Attack(eval, f"open({str(mark)!r}, 'w')"),
    "builtins.exec": lambda mark: Attack(exec, f"open({str(mark)!r}, 'w')"),
    "builtins.open": lambda mark: Attack(open, str(mark), "w"),
    "nested": lambda mark: {"state_dict": [Attack(list, [Attack(os.system, f"touch {mark}")])]},
    "as state": lambda mark: Attack(argparse.Namespace, state={"x": Attack(os.mkdir, str(mark))}),
    "importlib": lambda mark: Attack(__import__, "antigravity"),
    "a storage": lambda mark: Attack(torch.storage._load_from_bytes, pickle.dumps(Attack(os.mkdir, str(mark)))),
    "torch.load": lambda mark: Attack(torch._utils._rebuild_tensor_v2, Attack(os.mkdir, str(mark)), 0, (1,), (1,)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_read_checkpoint__malicious_calls_are_refused(tmp_path: Path, save: Any, name: str) -> None:
    mark = tmp_path / "was-executed"
    path = save(ATTACKS[name](mark), tmp_path / "bad.ckpt")
    modules = set(sys.modules)
    with pytest.raises(WeightsError, match=r"bad\.ckpt.*(posix|builtins|_?io|nt)\.\w+'.*may be malicious"):
        read_checkpoint(path)
    assert not mark.exists()
    assert set(sys.modules) == modules


def test_read_checkpoint__third_party_calls_are_recorded_only(tmp_path: Path) -> None:
    path = plain(HEAD + b"cantigravity_2\nopen_browser\n(X\x01\x00\x00\x00atR.", tmp_path / "a.ckpt")
    found = read_checkpoint(path)
    assert found.kind == Global("antigravity_2", "open_browser")
    assert found.args == ("a",)
    assert "antigravity_2" not in sys.modules


def test_read_checkpoint__a_global_is_not_imported(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "booby_trap.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_checkpoint(plain(HEAD + b"cbooby_trap\nThing\n.", tmp_path / "a")) == Global("booby_trap", "Thing")


def test_read_checkpoint__state_never_reaches_a_class(tmp_path: Path) -> None:
    # BUILD would call __setstate__, or set attributes of the function that a global names
    content = HEAD + b"ctorch._utils\n_rebuild_tensor_v2\n}U\x0c__defaults__)sb."
    with pytest.raises(WeightsError, match=r"sets the state of 'torch\._utils\._rebuild_tensor_v2'"):
        read_checkpoint(plain(content, tmp_path / "a"))
    storage = torch.ones(2).untyped_storage()
    tensor = Attack(torch._utils._rebuild_tensor_v2, storage, 0, (2,), (1,), False, {}, state=(1, 2))
    torch.save(tensor, tmp_path / "b")
    with pytest.raises(WeightsError, match="sets the state of a value of type Tensor"):
        read_checkpoint(tmp_path / "b")


def call(target: bytes) -> bytes:
    return target + b")R"


REFUSED = {
    "getattr chain": (call(call(b"cbuiltins\ngetattr\n")), r"calls a result of 'builtins\.getattr'"),
    "calling text": (call(b"U\x01a"), "calls a value of type str"),
    "calling a list": (call(b"]"), "calls a value of type list"),
    "no arguments": (b"cos\nsystem\nNR", "with a value of type NoneType for arguments"),
    "instance": (b"(U\x01aios\nsystem\n", r"os\.system.*malicious"),
    "object": (b"(cos\nsystem\nU\x01ao", r"os\.system.*malicious"),
    "new object": (b"csubprocess\nPopen\n)\x81", r"subprocess\.Popen.*malicious"),
    "new object with keywords": (b"csubprocess\nPopen\n)}\x92", r"subprocess\.Popen.*malicious"),
    "keywords": (b"cx\ny\n)]\x92", "list for keywords"),
    "python 2": (b"c__builtin__\neval\n)R", r"builtins\.eval.*malicious"),
    "dotted module": (b"cos.path\njoin\n)R", r"os\.path\.join.*malicious"),
    "global from the stack": (b"U\x02osU\x06system\x93)R", r"os\.system.*malicious"),
    "global of numbers": (b"K\x01K\x02\x93", "names a global by"),
    "reconstructor": (b"ccopy_reg\n_reconstructor\n(cos\nsystem\ncos\nsystem\nNtR", r"os\.system.*malicious"),
    "codecs": (b"c_codecs\nencode\n(U\x01aU\x05rot13tR", "wrong arguments: only latin1"),
    "extension": (b"\x82\x01", "instruction EXT1"),
    "persistent text": (b"Pabc\n", "instruction PERSID"),
    "buffer": (b"\x97", "instruction NEXT_BUFFER"),
    "persistent id": (b"K\x01Q", "not in a plain pickle"),
    "state of a list": (b"]}b", "sets the state of a value of type list"),
    "append to a name": (b"cx\ny\nK\x01a", r"appends to 'x\.y'"),
    "items of a list": (b"]K\x01K\x02s", "sets items of a value of type list"),
    "members of a list": (b"](K\x01\x90", "adds members to a value of type list"),
    "unhashable key": (b"}]K\x01s", "a value of type list as a key"),
    "nested key": (b"})\x85\x85K\x01s", "a value of type tuple as a key"),
    "holds itself": (b"]q\x00h\x00a", "a container that holds itself"),
    "short stack": (b"R", "damaged"),
    "short tuple": (b"K\x01\x87", "damaged: the stack is too short"),
    "no mark": (b"K\x01l", "damaged"),
    "unknown memo": (b"h\x05", "damaged"),
    "two values": (b"K\x01K\x02", "does not leave one value"),
    "odd items": (b"}(K\x01u", "damaged"),
    "unknown opcode": (b"\xff", "damaged"),
    "storage of nothing": (b"ctorch.storage\n_load_from_bytes\n(NtR", "NoneType for a storage"),
    "tensor of nothing": (b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR", "makes a tensor of a value of type NoneType"),
    "parameter of nothing": (b"ctorch._utils\n_rebuild_parameter\n(NtR", "makes a parameter of a value of type NoneT"),
    "wrong arguments": (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "_rebuild_tensor_v2' with wrong arguments"),
    "wrong pairs": (b"ccollections\nOrderedDict\n(K\x01tR", "OrderedDict' with wrong arguments"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_read_checkpoint__abuse_is_refused(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    with pytest.raises(WeightsError, match=rf"a\.ckpt' cannot be read as weights: .*{message}"):
        read_checkpoint(plain(HEAD + content + b".", tmp_path / "a.ckpt"))


def test_read_checkpoint__circles_of_objects_are_read(tmp_path: Path) -> None:
    parent, child = argparse.Namespace(), argparse.Namespace()
    parent.child, child.parent = child, parent
    found = read_checkpoint(plain(pickle.dumps(parent), tmp_path / "a"))
    assert found.state["child"].state["parent"] is found


def bomb(levels: int) -> bytes:
    """Lists of ten times the same list: few bytes, 10 ** levels values."""
    return HEAD + b"](K\x01eq\x000" + (b"](" + b"h\x00" * 10 + b"eq\x000") * levels + b"h\x00."


def test_read_checkpoint__shared_lists_that_would_explode_are_refused(tmp_path: Path) -> None:
    assert len(read_checkpoint(plain(bomb(4), tmp_path / "a"))) == 10
    with pytest.raises(WeightsError, match="hold more than 10,000,000 values"):
        read_checkpoint(plain(bomb(30), tmp_path / "b"))


@pytest.mark.parametrize("name", ["tuples", "lists", "objects"])
def test_read_checkpoint__deep_nests_are_refused(tmp_path: Path, name: str) -> None:
    content = {
        "tuples": b")" + b"\x85" * 30_000,
        "lists": b"]" * 10_000 + b"a" * 9_999,
        "objects": b"cx\ny\n(" + b")" + b"\x85" * 300 + b"tR",
    }[name]
    with pytest.raises(WeightsError, match="more than 100 deep"):
        read_checkpoint(plain(HEAD + content + b".", tmp_path / "a"))


def test_read_checkpoint__deep_by_sharing_is_refused(tmp_path: Path) -> None:
    # the list at the bottom is met first where it is not deep
    inner = HEAD + b"]()" + b"\x85" * 60 + b"q\x00h\x00" + b"\x85" * 60 + b"e."
    with pytest.raises(WeightsError, match="more than 100 deep"):
        read_checkpoint(plain(inner, tmp_path / "a"))


def test_read_checkpoint__endless_pickles_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(pickle_machine, "MAX_INSTRUCTIONS", 100)
    with pytest.raises(WeightsError, match="more than 100 instructions"):
        read_checkpoint(plain(HEAD + b"N0" * 100 + b"N.", tmp_path / "a"))


def test_read_checkpoint__lengths_beyond_the_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="damaged"):
        read_checkpoint(plain(HEAD + b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", tmp_path / "a"))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_read_checkpoint__truncated_files(tmp_path: Path, save: Any, part: float) -> None:
    path = save({"a": torch.ones(100), "b": torch.ones(100)}, tmp_path / "a.pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(WeightsError, match=r"a\.pth' cannot be read as weights"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><title>Quota exceeded", "no checkpoint; it begins with b'<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1", "it is no checkpoint"),
        (b"c", "damaged"),
        (b"PK\3\4 and so on", "zip archive is damaged or cut off"),
    ],
)
def test_read_checkpoint__other_files(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=rf"a\.ckpt' cannot be read.*{message}"):
        read_checkpoint(plain(content, tmp_path / "a.ckpt"))


def test_read_checkpoint__missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.pth' cannot be read: No such file"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(WeightsError, match="cannot be read: Is a directory"):
        read_checkpoint(tmp_path)


def rewrite(path: Path, changes: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with records replaced, or left out where None."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            if (changed := changes.get(name.partition("/")[2], content)) is not None:
                archive.writestr(name, changed)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data/0": None}, "record 'data/0' is missing"),
        ({"data/0": b"abc"}, r"record 'data/0' has 3 bytes, not 4 numbers of torch\.float32"),
        ({"data.pkl": None}, r"zip archive without 'data\.pkl'"),
        ({"byteorder": b"big"}, "byte order 'big'"),
    ],
)
def test_read_checkpoint__damaged_archives(tmp_path: Path, changes: Any, message: str) -> None:
    torch.save(torch.ones(4), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(rewrite(tmp_path / "a.pth", changes))


def test_read_checkpoint__compressed_archives_are_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(10_000), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="compressed or encrypted"):
        read_checkpoint(rewrite(tmp_path / "a.pth", {}, zipfile.ZIP_DEFLATED))


def test_read_checkpoint__storages_at_odd_places_are_copied(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(7.0), "b": torch.ones(3)}, tmp_path / "a.pth")
    found = read_checkpoint(rewrite(tmp_path / "a.pth", {}))  # without the padding that torch writes
    assert found["a"].tolist() == list(range(7))
    assert found["b"].tolist() == [1, 1, 1]


STORAGE = object()


def archive_of(identity: Any, size: Any, stride: Any, offset: Any, path: Path) -> Path:
    """A checkpoint of one tensor whose storage and layout are as given."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return identity if value is STORAGE else None

    buffer = io.BytesIO()
    tensor = Attack(torch._utils._rebuild_tensor_v2, STORAGE, offset, size, stride, False, {})
    Pickler(buffer, protocol=2).dump(tensor)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", buffer.getvalue())
        archive.writestr("x/data/0", torch.arange(4.0).numpy().tobytes())
    return path


FLOATS = ("storage", torch.FloatStorage, "0", "cpu", 4)


@pytest.mark.parametrize(
    ("identity", "size", "stride", "offset", "message"),
    [
        (FLOATS, (5,), (1,), 0, r"size \(5,\) in a storage of 4"),
        (FLOATS, (2,), (1,), 3, r"size \(2,\) in a storage of 4"),
        (FLOATS, (10**9, 10**9), (0, 0), 0, "in a storage of 4"),
        (FLOATS, (2,), (-1,), 3, r"stride \(-1,\)"),
        (FLOATS, (0, 2**62, 2**62), (1, 1, 1), 0, "wrong arguments"),
        (FLOATS, (0, 10**30), (1, 1), 0, "wrong arguments"),
        (FLOATS, (2, 2), (1,), 0, "stride"),
        (FLOATS, (2.0,), (1,), 0, "size"),
        (FLOATS, (2,), (1,), -1, "offset -1"),
        (("storage", torch.FloatStorage, "0", "cpu", 5), (5,), (1,), 0, "16 bytes, not 5 numbers"),
        (("storage", torch.FloatStorage, "0", "cpu", -1), (), (), 0, "16 bytes, not -1 numbers"),
        (("storage", torch.FloatStorage, "../0", "cpu", 4), (4,), (1,), 0, "is missing"),
        (("storage", torch.FloatStorage, 0, "cpu", 4), (4,), (1,), 0, "a storage by a value of type int"),
        (("storage", os.system, "0", "cpu", 4), (4,), (1,), 0, "unknown kind '(posix|nt).system'"),
        (("storage", "FloatStorage", "0", "cpu", 4), (4,), (1,), 0, "unknown kind a value of type str"),
        (("other", 1), (4,), (1,), 0, "data of the unknown kind 'other'"),
        ((*FLOATS, ("1", 2, 3)), (3,), (1,), 0, "a part of its storage '0' lies outside"),
        (["storage"], (4,), (1,), 0, "refers to data by a value of type list"),
    ],
)
def test_read_checkpoint__tensors_outside_their_storage(
    tmp_path: Path, identity: Any, size: Any, stride: Any, offset: Any, message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(archive_of(identity, size, stride, offset, tmp_path / "a.pth"))


def test_read_checkpoint__views_of_old_streams(tmp_path: Path) -> None:
    path = archive_of((*FLOATS, ("1", 1, 3)), (2,), (1,), 1, tmp_path / "a.pth")
    assert read_checkpoint(path).tolist() == [2, 3]


def test_read_checkpoint__streams_that_lie(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(torch.ones(4), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.pth").read_bytes()
    for old, new, message in [
        (b"M\xe9\x03.", b"M\xe8\x03.", "protocol 1000"),
        (b"little_endianq\x02\x88", b"little_endianq\x02\x89", "byte order of another machine"),
        (b"K\x04N", b"K\x05N", "cut off or has another length"),
        (b"K\x04N", b"K\xffN", "longer than the file"),
        (b"]q\x00X", b"]q\x00NaX", "list of storages"),
    ]:
        assert old in whole, old
        with pytest.raises(WeightsError, match=message):
            read_checkpoint(plain(whole.replace(old, new), tmp_path / "b.pth"))
